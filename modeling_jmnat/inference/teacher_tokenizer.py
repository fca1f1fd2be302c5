"""The tokenizer of a student that starts from an autoregressive model of the Hub, with the same ids for any text.

`<mask>`, and `<s>` if it is missing, are appended to the ids of the teacher.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import import_protobuf

from ..segmenters import SPACE
from ..tokenization_jmnat import JMNatTokenizer, wrap_tokenizer
from .loading import is_multilingual, language_tokens, load_teacher_tokenizer

MARIAN_FILES = ("source.spm", "target.spm", "vocab.json")
NAMED_TOKENS = ("bos_token", "pad_token", "eos_token", "unk_token", "mask_token")
APPENDED = {"bos_token": "<s>", "mask_token": "<mask>"}
BYTE = "<0x00>"  # in vocabularies that represent unknown characters by bytes
# Kinds of pieces in a SentencePiece model, and of models.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
UNIGRAM, BYTE_PAIRS = 1, 2
UNMATCHABLE = "\0"  # replaces the unknown piece, so that no text can spell it


def tokenizer_of_teacher(
    folder: Path, languages: Sequence[str] | None = None, language_code: str | None = None
) -> tuple[JMNatTokenizer, int]:
    """A `JMNatTokenizer` with a teacher's ids, and the number of ids that both have in common.

    Args:
        folder: the teacher's folder, with Marian's `source.spm`, `target.spm` and `vocab.json`; M2M100's `vocab.json`
            and `.model` file; or a tokenizer.json, as for NLLB, mBART and Bart.
        languages: source and target codes of a multilingual model, whose tokens then begin every text.
        language_code: code of a Marian model with several target languages, such as `">>eng<<"`, which then begins
            every source. Without it, texts must begin with a code themselves.

    Raises:
        ValueError: files are missing, damaged or do not fit each other, the tokenizer is of another kind, or languages
            are missing or do not apply to it.
    """
    if (folder / "source.spm").exists() or (folder / "target.spm").exists():
        for name in MARIAN_FILES:
            if not (folder / name).is_file():
                raise ValueError(f"{folder} has no complete Marian tokenizer ({name} is missing): download it again")
    theirs = load_teacher_tokenizer(folder)
    options = _first_tokens(theirs, folder, languages, language_code)
    if isinstance(theirs, JMNatTokenizer):
        return theirs, len(theirs)
    kind = type(theirs).__name__
    if kind == "MarianTokenizer":
        if theirs.separate_vocabs:
            raise ValueError(
                f"{folder} has a vocabulary for each language, but a JM-NAT has one for both: choose another model"
            )
        return _with_segmenters(theirs, theirs.encoder, theirs.spm_files, options), len(theirs.encoder)
    if kind == "M2M100Tokenizer":
        vocabulary = {**theirs.encoder, **theirs.lang_token_to_id}
        return _with_segmenters(theirs, vocabulary, [theirs.spm_file] * 2, options), len(vocabulary)
    if not theirs.is_fast:
        raise ValueError(
            f"{folder} has a {kind}, which is written in Python: only tokenizers of Marian, of M2M100 and those with "
            "a tokenizer.json can be converted"
        )
    return _of_backend(theirs, folder, options), len(theirs)


def _first_tokens(
    theirs: PreTrainedTokenizerBase, folder: Path, languages: Sequence[str] | None, language_code: str | None
) -> dict[str, str | None]:
    """The first tokens of sources and targets, as options of `JMNatTokenizer`.

    Lets a multilingual tokenizer expect these languages.
    """
    if isinstance(theirs, JMNatTokenizer):  # which has its own first tokens
        for name, value in (("teacher_languages", languages), ("language_code", language_code)):
            if value is not None:
                raise ValueError(f"{name}={value!r} does not apply to the tokenizer of {folder}: leave {name} out")
        return {}
    options: dict[str, str | None] = {}
    if languages is not None:
        first = language_tokens(theirs, languages, "teacher_languages")
        options = dict(zip(("source_start", "target_start"), first, strict=True))
        theirs.src_lang, theirs.tgt_lang = (code.strip("_") for code in languages)
    elif is_multilingual(theirs):
        raise ValueError(
            f"{folder} is multilingual: give its source and target language with --teacher_languages, because every "
            "text begins with a language"
        )
    if language_code is not None:
        is_code = language_code.startswith(">>") and language_code.endswith("<<")
        if not is_code or theirs.convert_tokens_to_ids(language_code) in (None, theirs.unk_token_id):
            known = [token for token in theirs.get_vocab() if token.startswith(">>")]
            raise ValueError(
                f"language_code={language_code!r} is not in the teacher's vocabulary"
                + (f", which has {', '.join(known[:5])}" if known else ": it has one target language")
            )
        options["source_start"] = language_code
    return options


def _of_backend(theirs: PreTrainedTokenizerBase, folder: Path, options: Mapping[str, str | None]) -> JMNatTokenizer:
    """Convert a tokenizer that is defined by its tokenizer.json.

    Sources begin with `<s>` where the teacher's do; targets do not, because `<s>` is never predicted.
    """
    backend = copy.deepcopy(theirs.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    names = _names(theirs)
    backend.add_special_tokens([AddedToken(names[name], special=True) for name in APPENDED])
    languages = [token for token in theirs.all_special_tokens if token not in names.values()]
    around = theirs("")["input_ids"]
    if theirs.bos_token is not None and around[:1] == [theirs.bos_token_id]:
        options = {"source_start": theirs.bos_token, **options}
    ours = _wrapped(backend, theirs, languages, options)
    if ours("")["input_ids"] != around:
        tokens = " ".join(theirs.convert_ids_to_tokens(around))
        raise ValueError(
            f"{folder} puts {tokens} around a source, but a JM-NAT has at most one token before it and "
            f"{theirs.eos_token} behind it: distil it with `jmnat distill`, and train without its weights"
        )
    return ours


def _with_segmenters(
    theirs: PreTrainedTokenizerBase,
    vocabulary: Mapping[str, int],
    segmenters: Sequence[str],
    options: Mapping[str, str | None],
) -> JMNatTokenizer:
    """Convert a tokenizer with SentencePiece models of source and target, and their pieces' ids in `vocabulary`."""
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    for index, piece in enumerate(pieces):
        if vocabulary[piece] != index:
            raise ValueError(
                f"{theirs.name_or_path}/vocab.json has no token with id {index} (the next is {vocabulary[piece]}): "
                "its ids must be 0, 1, 2, ..., each once"
            )
    names = _names(theirs)
    pieces += [token for token in APPENDED.values() if token not in vocabulary]
    backend = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token=names["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    from_bytes = [decoders.ByteFallback()] if BYTE in vocabulary else []
    spaces = decoders.Replace(SPACE, " ")
    edges = decoders.Replace(Regex(r"^\s+|\s+$"), "")
    backend.decoder = decoders.Sequence([*from_bytes, decoders.Fuse(), spaces, edges])
    languages = [*getattr(theirs, "lang_token_to_id", ())]
    backend.add_special_tokens([AddedToken(token, special=True) for token in [*names.values(), *languages]])
    made = {file: segmenter_of(Path(file)) for file in set(segmenters)}  # both sides may share one
    of_sides = dict(zip(("source_segmenter", "target_segmenter"), map(made.__getitem__, segmenters), strict=True))
    return _wrapped(backend, theirs, languages, {**of_sides, **options})


def _wrapped(
    backend: Tokenizer, theirs: PreTrainedTokenizerBase, languages: Sequence[str], options: Mapping[str, str | None]
) -> JMNatTokenizer:
    """Wrap with the teacher's special tokens and maximum length; `languages` are special tokens as well."""
    extra = {"extra_special_tokens": languages} if languages else {}
    return wrap_tokenizer(backend, model_max_length=theirs.model_max_length, **_names(theirs), **extra, **options)


def _names(theirs: PreTrainedTokenizerBase) -> dict[str, str]:
    """The names of the special tokens: the teacher's, or ours for those to append."""
    return {name: str(getattr(theirs, name) or APPENDED[name]) for name in NAMED_TOKENS}


def segmenter_of(path: Path) -> str:
    """A SentencePiece model as JSON for `SentencePieceSegmenter`.

    Raises:
        ValueError: the file is damaged, or the model is of another kind.
    """
    model = import_protobuf().ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception:  # its class depends on the version of protobuf
        raise ValueError(f"{path} is damaged or not a SentencePiece model: download it again") from None
    training, cleaning = model.trainer_spec, model.normalizer_spec
    if training.model_type not in (UNIGRAM, BYTE_PAIRS) or training.treat_whitespace_as_suffix:
        raise ValueError(f"{path} must be a unigram or byte-pair model with spaces before words: choose another model")
    if not (cleaning.add_dummy_prefix and cleaning.escape_whitespaces and cleaning.remove_extra_whitespaces):
        raise ValueError(f"{path} keeps repeated spaces: only models that merge them can be converted, choose another")
    tokenizer = Tokenizer(_unigram(model) if training.model_type == UNIGRAM else _byte_pairs(model))
    precompiled = cleaning.precompiled_charsmap
    tokenizer.normalizer = normalizers.Sequence(
        [
            *([normalizers.Precompiled(precompiled)] if precompiled else []),
            normalizers.Replace(Regex(f"^ +|[ {SPACE}]+$"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Prepend(SPACE),
            normalizers.Replace(" ", SPACE),
        ]
    )
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False)


def _matchable(model) -> dict[str, float]:
    """The pieces into which text can be cut, with their scores."""
    highest = max((piece.score for piece in model.pieces if piece.type == NORMAL), default=0.0)
    pieces = {piece.piece: piece.score for piece in model.pieces if piece.type not in (UNKNOWN, CONTROL, UNUSED)}
    for piece in model.pieces:
        if piece.type == USER_DEFINED:  # SentencePiece's bonus, by which they are always chosen
            pieces[piece.piece] = len(piece.piece.encode()) * highest - 0.1
    return pieces


def _unigram(model) -> models.Unigram:
    pieces = [(UNMATCHABLE, 0.0), *_matchable(model).items()]
    return models.Unigram(pieces, unk_id=0, byte_fallback=model.trainer_spec.byte_fallback)


def _byte_pairs(model) -> models.BPE:
    """The merges of two pieces into a third, in the order of its score."""
    scores = _matchable(model)
    merges = [
        (-score, (piece[:cut], piece[cut:]))
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    merges.sort(key=lambda merge: merge[0])
    return models.BPE(
        {piece: i for i, piece in enumerate([UNMATCHABLE, *scores])},
        [pair for _, pair in merges],
        unk_token=UNMATCHABLE,
        fuse_unk=True,
        byte_fallback=model.trainer_spec.byte_fallback,
    )
