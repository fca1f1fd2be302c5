"""A JM-NAT initialised from an autoregressive model of the Hub with Bart's layers: opus-mt, M2M100, NLLB.

It has the teacher's vocabulary, sizes and weights. `[LEN]`, positional attention and `<mask>` are new, so it
translates badly until it is trained.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from ..configuration_jmnat import JMNatConfig
from ..inference.loading import NO_FOREIGN_CODE, load_teacher, refuse_student
from ..inference.teacher_tokenizer import tokenizer_of_teacher
from ..modeling_jmnat import JMNatForConditionalGeneration
from ..tokenization_jmnat import JMNatTokenizer, set_repeatable_tokens
from ..utils.atomic_files import whole_folder, write_json
from ..utils.fingerprints import digest, file_digest, model_digest
from ..utils.hub_folders import fetch_folder
from ..utils.json_files import read_json
from ..utils.locks import folder_lock
from .initial_weights import CopiedWeights, copy_teacher_weights, tables_of

KINDS = ("marian", "m2m_100", "pegasus", "bart", "mbart", "plbart")  # model types whose layers have Bart's names
TOKENIZER_FILES = ("*.json", "*.spm", "*.model", "merges.txt")
MADE_FROM = "made_from.json"  # written into the folder, to recognise a call that is repeated
VOCABULARY_FILES = ("vocab*.json", "*.spm", "*.model", "merges.txt")  # `model_digest` leaves them out
COPIED_FIELDS = (
    *(f"{half}_{size}" for half in ("encoder", "decoder") for size in ("attention_heads", "ffn_dim")),
    *("d_model", "dropout", "attention_dropout", "activation_dropout", "activation_function", "scale_embedding"),
)
LONGEST_SINUSOIDS = 512  # tokens; sinusoids have no limit of their own, but the length table has a row per length


def start_from_teacher(
    teacher: str | Path,
    output: str | Path,
    languages: Sequence[str] | None = None,
    language_code: str | None = None,
    encoder_layers: int | None = None,
    decoder_layers: int | None = None,
    seed: int = 42,
) -> CopiedWeights | None:
    """Write the folder of a JM-NAT with a teacher's tokenizer and weights, in float32.

    Args:
        teacher: a folder, or a name on the Hub.
        output: a new folder.
        languages, language_code: see `tokenizer_of_teacher`.
        encoder_layers, decoder_layers: numbers of layers, of which the teacher's first ones are copied. None: as the
            teacher.
        seed: random seed of the weights that the teacher does not have.

    Returns:
        Which weights were copied and which were not; None if `output` is what an earlier call with the same arguments
        wrote, which stays as it is.

    Raises:
        ValueError: the model is of another kind, files are missing or do not fit each other, or `output` exists.
        OSError: a file cannot be read or written, or another process has written to `output` in the meantime.
    """
    layers = {"encoder_layers": encoder_layers, "decoder_layers": decoder_layers}
    wording = {"languages": None if languages is None else list(languages), "language_code": language_code}
    made_from = {**teacher_fingerprint(teacher), **wording, **layers, "seed": seed}
    with folder_lock(output, "output", beside=True):
        if Path(output).exists():
            if not _is_made(Path(output), made_from):
                raise ValueError(f"output={output} exists already: name a new folder")
            return None
        with whole_folder(output, replace=False) as folder, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            files = fetch_folder(teacher, TOKENIZER_FILES)
            check_kind(teacher, AutoConfig.from_pretrained(files, **NO_FOREIGN_CODE))
            tokenizer, shared = tokenizer_of_teacher(files, languages, language_code)
            theirs, _ = load_teacher(teacher, dtype=torch.float32)
            sizes = {name: getattr(theirs.config, name) if size is None else size for name, size in layers.items()}
            model = JMNatForConditionalGeneration(config_of_student(theirs, tokenizer, **sizes))
            report = copy_teacher_weights(model, theirs, shared)
            set_repeatable_tokens(model, tokenizer)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            figures = {"copied": report.num_copied, "parameters": report.num_parameters}
            write_json(folder / MADE_FROM, {"made_from": made_from, "model": model_digest(folder), **figures})
    return report


def teacher_fingerprint(teacher: str | Path) -> dict[str, str]:
    """What identifies a teacher: its weights, configuration and vocabulary; its name for a model of the Hub."""
    files = sorted(path for pattern in VOCABULARY_FILES for path in Path(teacher).glob(pattern) if path.is_file())
    vocabulary = digest(part for path in files for part in (path.name, file_digest(path)))
    return {"teacher": model_digest(teacher), "vocabulary": vocabulary}


def _is_made(output: Path, made_from: Mapping[str, object]) -> bool:
    """Whether a folder is what `start_from_teacher` made from the same, and nothing was trained in it since."""
    if not (output / MADE_FROM).is_file() or not (output / "config.json").is_file():
        return False
    written = read_json(output / MADE_FROM, what_to_do="name a new folder")
    return written.get("made_from") == made_from and written.get("model") == model_digest(output)


def check_kind(teacher: str | Path, config: PreTrainedConfig) -> None:
    """ValueError for a model with other layers than a JM-NAT."""
    refuse_student(teacher, config)
    if config.model_type not in KINDS:
        raise ValueError(
            f"{teacher} is a {config.model_type} model, whose layers a JM-NAT does not have: start from one of "
            f"{', '.join(KINDS)}, or distil it with `jmnat distill` and train without its weights"
        )


def config_of_student(teacher: PreTrainedModel, tokenizer: JMNatTokenizer, **layers: int) -> JMNatConfig:
    """The configuration in which the teacher's weights compute the same as in the teacher."""
    theirs = teacher.config
    positions = teacher.get_encoder().embed_positions
    learned = "Sinusoidal" not in type(positions).__name__ and positions.weight.requires_grad
    longest = theirs.max_position_embeddings if learned else min(theirs.max_position_embeddings, LONGEST_SINUSOIDS)
    fields = {name: getattr(theirs, name) for name in COPIED_FIELDS} | layers
    norms = [module for module in teacher.modules() if isinstance(module, nn.LayerNorm)]
    begin_with_language = any(map(tokenizer.language_code, tokenizer.get_vocab()))
    return JMNatConfig.for_tokenizer(
        tokenizer,
        **fields,
        layer_norm_eps=norms[0].eps,
        normalize_before=getattr(teacher.get_encoder(), "layer_norm", None) is not None,
        position_embedding_type="learned" if learned else "sinusoidal",
        max_position_embeddings=longest,
        max_target_length=longest,
        **tables_of(teacher),
        # If texts begin with a language code that the tokenizer does not add, later sentences would have none.
        split_sentences=tokenizer.init_kwargs.get("source_start") is not None or not begin_with_language,
    )
