"""Autoregressive models of Transformers in CTranslate2: which ones it can run here, and their conversion."""

import importlib.util
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

SEARCH_BACKENDS = ("auto", "ctranslate2", "transformers")
NUMBER_TYPES = ("float32", "float16", "bfloat16")
CONVERTIBLE = ("m2m_100", "marian")  # model types
NEVER = -1e9  # logit of a token that must not be predicted


def number_type(model: PreTrainedModel) -> str:
    """The name of the model's number type, such as "float32"."""
    return str(model.dtype).removeprefix("torch.")


def ctranslate2_number_types(device: torch.device | str) -> list[str]:
    """Number types in which the installed CTranslate2 can compute on this device."""
    import ctranslate2

    device = torch.device(device)
    supported = ctranslate2.get_supported_compute_types(device.type, device.index or 0)
    return [name for name in NUMBER_TYPES if name in supported]


def choose_backend(name: str, model: PreTrainedModel, device: torch.device | str) -> str:
    """Resolve "auto": CTranslate2 on a CPU if it is installed and can run the model, else Transformers.

    CTranslate2 computes in the number type of `model`, as Transformers does.

    Raises:
        ValueError: the name is unknown, or CTranslate2 was chosen and cannot run.
    """
    if name not in SEARCH_BACKENDS:
        raise ValueError(f"backend={name!r} is not one of {', '.join(SEARCH_BACKENDS)}")
    installed = importlib.util.find_spec("ctranslate2") is not None
    known = model.config.model_type in CONVERTIBLE
    multilingual = model.generation_config.forced_bos_token_id is not None  # the target language as a first token
    if name == "ctranslate2":
        if not installed:
            raise ValueError("backend='ctranslate2' is not installed: pip install ctranslate2, or use 'transformers'")
        if not known or multilingual:
            kind = f"{'multilingual ' if multilingual else ''}{model.config.model_type}"
            raise ValueError(f"backend='ctranslate2' cannot run a {kind} model here: use 'transformers'")
        allowed = ctranslate2_number_types(device)
        if number_type(model) not in allowed:
            raise ValueError(
                f"backend='ctranslate2' cannot compute in dtype={number_type(model)!r} on this "
                f"{torch.device(device).type}: choose {' or '.join(allowed)}, or use backend='transformers'"
            )
        return name
    suitable = installed and known and not multilingual and torch.device(device).type == "cpu"
    if name == "auto" and suitable and number_type(model) in ctranslate2_number_types(device):
        return "ctranslate2"
    return "transformers"


def starts_from_zero(model: PreTrainedModel) -> bool:
    """Whether a Marian model decodes from `<pad>` with a zero embedding, as all models trained by Marian do."""
    start = model.config.decoder_start_token_id
    return start == model.config.pad_token_id and not model.get_input_embeddings().weight[start].any()


def ctranslate2_converter(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Any:
    """A converter of CTranslate2 (`.convert(folder)`) that reads a model in memory, on the CPU and in float32.

    CTranslate2's own loader for Marian drops the last row of the vocabulary and starts from a zero embedding, as
    opus-mt does with `<pad>`. A Marian model that starts from another token (`build_teacher`'s start from `</s>`), or
    whose `<pad>` has been trained, is converted like BART.
    """
    from ctranslate2.converters.converter import Converter
    from ctranslate2.converters.transformers import BartLoader, M2M100Loader, MarianMTLoader

    class PostNormLoader(BartLoader):
        def get_model_spec(self, model):
            model.config.normalize_before = False
            model.config.normalize_embedding = False
            spec = super().get_model_spec(model)
            if model.config.decoder_start_token_id == model.config.pad_token_id:  # opus-mt's `bad_words_ids`
                bias = model.final_logits_bias.flatten().clone()
                bias[model.config.pad_token_id] = NEVER
                spec.decoder.projection.bias = bias
            return spec

        def set_config(self, config, model, tokenizer):
            super().set_config(config, model, tokenizer)
            config.bos_token = config.bos_token or config.eos_token  # required by CTranslate2

    if model.config.model_type == "m2m_100":
        loader = M2M100Loader()
    elif starts_from_zero(model):
        loader = MarianMTLoader()
    else:
        loader = PostNormLoader()

    class InMemoryConverter(Converter):
        def _load(self):
            attributes = dict(vars(model.config))
            try:
                with torch.no_grad():
                    return loader(model, tokenizer)
            finally:  # loaders add fields to the configuration
                for name in set(vars(model.config)) - set(attributes):
                    delattr(model.config, name)

    return InMemoryConverter()
