"""An engine's beam search with the interface of an autoregressive model, for `translate_lines`."""

from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from ..utils.id_batches import pad_batch
from .beam_search import max_target_length
from .ctranslate2_models import choose_backend
from .engines import CTranslate2Engine, Engine, TransformersEngine

SAVED_OPTIONS = ("length_penalty", "repetition_penalty", "no_repeat_ngram_size")


class SearchModel:
    """Translates as `engines.decode` does: except for rounding, no translation depends on the rest of its batch.

    Args:
        num_beams: 1 is greedy search.
    """

    def __init__(self, engine: Engine, num_beams: int, pad_token_id: int):
        self.engine, self.pad_token_id = engine, pad_token_id
        self.config, self.device = engine.config, engine.device
        self.generation_config = GenerationConfig(num_beams=num_beams)

    def generate(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **others) -> ModelOutput:
        """Sequences (B, T), padded on the right, and their scores (B,) if the engine reports them.

        Args:
            others: options that `translate_lines` sets for Transformers; ignored, because this search sets its limits.
        """
        rows = zip(input_ids.tolist(), attention_mask.sum(dim=1).tolist(), strict=True)
        sources = [ids[:length] for ids, length in rows]
        limits = [max_target_length(self.config, len(source)) for source in sources]
        options = {"num_beams": self.generation_config.num_beams, "limits": limits}
        output = self.engine.translate(self.engine.prepare(sources), options)
        fields: dict[str, Any] = {"sequences": pad_batch(self.engine.read(output), self.pad_token_id)[0]}
        scores = self.engine.scores(output)
        if scores is not None:
            fields["sequences_scores"] = torch.tensor(scores)
        return ModelOutput(fields)


def search_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, backend: str, options: dict[str, Any]
) -> SearchModel:
    """An autoregressive model as a `SearchModel`.

    Args:
        backend: "transformers" or "ctranslate2".
        options: `num_beams` and `SAVED_OPTIONS`. Default: as saved with the model.

    Raises:
        ValueError: an unknown option, or CTranslate2 cannot run the model.
    """
    for name in options:
        if name not in ("num_beams", *SAVED_OPTIONS):
            allowed = ", ".join(("num_beams", *SAVED_OPTIONS))
            raise ValueError(f"{name} does not apply to the beam search of this command, which takes {allowed}")
    backend = choose_backend(backend, model, model.device)
    saved: Any = model.generation_config
    for name in SAVED_OPTIONS:
        if options.get(name) is not None:
            setattr(saved, name, options[name])
    with_ctranslate2 = backend == "ctranslate2"
    engine = CTranslate2Engine.from_model(model, tokenizer) if with_ctranslate2 else TransformersEngine(model)
    num_beams = options.get("num_beams") or getattr(saved, "num_beams", None) or 1
    return SearchModel(engine, num_beams, tokenizer.pad_token_id)
