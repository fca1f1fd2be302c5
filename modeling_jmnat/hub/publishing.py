"""Build a folder that loads with Transformers and PyTorch alone, and push it to the Hub.

Besides weights and tokenizer, it has the files of this package that the model needs (`auto_map`), the pipeline
(`custom_pipelines`), a card, and the files of an Inference Endpoint.
"""

import contextlib
import glob
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from transformers import PreTrainedTokenizerBase
from transformers.dynamic_module_utils import get_relative_import_files

from .. import pipeline as pipeline_module
from .. import plain_text, segmenters, spelling
from ..configuration_jmnat import JMNatConfig
from ..inference.exported_files import GRAPHS_FOLDER, SETTINGS
from ..inference.loading import is_jmnat_itself, load_translator
from ..inference.onnx_runtime import POSITIONS_FILE
from ..inference.translator_options import OPTIONS_FILE
from ..modeling_jmnat import JMNatForConditionalGeneration
from ..onnx_export import exporter
from ..pipeline import CUSTOM_PIPELINES
from ..tokenization_jmnat import JMNatTokenizer
from ..utils.atomic_files import write_json
from ..utils.fingerprints import file_digest

AUTO_CLASSES = {
    JMNatConfig: "AutoConfig",
    JMNatForConditionalGeneration: "AutoModelForSeq2SeqLM",
    JMNatTokenizer: "AutoTokenizer",
}
AUTO_MAP = {"AutoModel": "modeling_jmnat.JMNatModel"}  # a save enters its own class alone
# Files of an earlier build or push, which must not stay beside new ones.
WEIGHT_FILES = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
GRAPH_PATTERNS = ("*.onnx", "output_weight*.safetensors", POSITIONS_FILE, OPTIONS_FILE, *SETTINGS, "tokenizer*.json")
GRAPH_FILES = tuple(f"{GRAPHS_FOLDER}/{name}" for name in GRAPH_PATTERNS)
CODE_MODULES = (plain_text, segmenters, spelling, pipeline_module)
CODE_FILES = ("*_jmnat.py", *(Path(module.__file__).name for module in CODE_MODULES))
REPLACED_FILES = (*WEIGHT_FILES, *CODE_FILES, *GRAPH_FILES)
# Files of an Inference Endpoint, copied from this package. Their first line distinguishes them from the user's own,
# and must stay as it was in folders that are published already.
ENDPOINT_FILES = ("handler.py", "requirements.txt")
CARD = "README.md"
# All files of a published model; a training leaves more in its folder.
PUBLISHED_FILES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *(*WEIGHT_FILES, *CODE_FILES),
    *(CARD, "[!.]*.png", f"{GRAPHS_FOLDER}/[!.]*"),
    *ENDPOINT_FILES,
)
# Loading adds these to a tokenizer's options, with which they would be saved.
LOADING_OPTIONS = ("is_local", "local_files_only", "name_or_path")


@contextlib.contextmanager
def carrying_code() -> Iterator[None]:
    """Saves inside this context include the code; `register_for_auto_class` would make every later save do so."""
    before = {cls: cls._auto_class for cls in AUTO_CLASSES}
    try:
        for cls, auto_class in AUTO_CLASSES.items():
            cls.register_for_auto_class(auto_class)
        yield
    finally:
        for cls, auto_class in before.items():
            cls._auto_class = auto_class


def load_for_publishing(source: str | Path) -> tuple[JMNatForConditionalGeneration, PreTrainedTokenizerBase]:
    """Model (single precision, on the CPU) and tokenizer of a training's output folder, or of a published one.

    Raises:
        ValueError: there is no model, or it is not a JM-NAT.
    """
    model, tokenizer = load_translator(source, device="cpu", dtype="float32")
    if not is_jmnat_itself(model.config):
        raise ValueError(f"{source} is a {model.config.model_type} model: only JM-NAT can be published")
    return model, tokenizer


def save_for_everyone(
    model: JMNatForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    languages: Sequence[str] | None = None,
    fp16: bool = False,
    max_shard_size: str = "5GB",
    onnx: bool = False,
) -> None:
    """Write weights, tokenizer, generation options and code into the new folder `folder`.

    Args:
        languages: source and target language; the pipeline reads the first from the configuration.
        fp16: store weights in half precision; they load in single precision unless `dtype` says otherwise. This rounds
            the weights of the given model in place.
        onnx: also write ONNX graphs, float32 and int8, to the subfolder `onnx`.

    Raises:
        ValueError: weights exceed the range of half precision, or graphs cannot be written.
    """
    folder = Path(folder)
    export_onnx = exporter() if onnx else None
    config = model.config
    if languages:
        config.source_language, config.target_language = languages
    config.custom_pipelines = CUSTOM_PIPELINES
    config.auto_map = dict(AUTO_MAP)
    for option in LOADING_OPTIONS:
        tokenizer.init_kwargs.pop(option, None)
    if fp16:
        round_weights(model)
    folder.mkdir(parents=True, exist_ok=True)
    for file in (pipeline_module.__file__, *get_relative_import_files(pipeline_module.__file__)):
        shutil.copyfile(file, folder / Path(file).name)
    with carrying_code():
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        tokenizer.save_pretrained(folder)
    if fp16:
        saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        write_json(folder / "config.json", {**saved, "dtype": "float32"})
        model.float()
    if onnx:
        export_onnx(model, folder / GRAPHS_FOLDER, int8=True, tokenizer=tokenizer)


def write_endpoint_files(folder: str | Path, output: str | Path) -> None:
    """Write the files of an Inference Endpoint into `folder`, which will replace `output`.

    A handler of the user's own in `output` stays, and so do its requirements.
    """
    if not any(is_own(Path(output) / name) for name in ENDPOINT_FILES):
        for name in ENDPOINT_FILES:
            shutil.copyfile(Path(__file__).parent / name, Path(folder) / name)


def is_own(path: Path) -> bool:
    """Whether a file with the name of one of `ENDPOINT_FILES` exists that this module did not write."""
    if not path.is_file():
        return False
    with open(path, "rb") as file, open(Path(__file__).parent / path.name, "rb") as ours:
        return file.readline() != ours.readline()


def keeps_foreign_card(folder: str | Path, output: str | Path) -> bool:
    """Whether `output`, which `folder` will replace, has a card of other weights that will stay."""
    if (Path(folder) / CARD).is_file() or not (Path(output) / CARD).is_file():
        return False
    new, old = (
        {path.name: file_digest(path) for pattern in WEIGHT_FILES for path in Path(place).glob(pattern)}
        for place in (folder, output)
    )
    return bool(old) and new != old  # without weights, it is one that was written before the first build


def round_weights(model: JMNatForConditionalGeneration) -> None:
    """Convert the weights to half precision; raises ValueError if one is too large for it."""
    limit = torch.finfo(torch.float16).max
    for name, parameter in model.named_parameters():
        largest = float(parameter.detach().abs().max())
        if not math.isfinite(largest) or largest > limit:
            raise ValueError(f"{name} has a weight of {largest:g}, above {limit:g} of half precision: leave fp16 out")
    model.half()


def published_files(folder: str | Path) -> dict[str, int]:
    """Size in bytes of each file of `folder` that belongs to a published model (`PUBLISHED_FILES`), by its name."""
    folder = Path(folder)
    files = sorted(path for pattern in PUBLISHED_FILES for path in folder.glob(pattern) if path.is_file())
    if any(is_own(folder / name) for name in ENDPOINT_FILES):
        files = [path for path in files if path.name not in ENDPOINT_FILES]
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def check_no_links(folder: str | Path) -> None:
    """Refuse links among the files to publish, because their targets would be published instead.

    Raises:
        ValueError: there is a link; the message names it and its target.
    """
    folder = Path(folder)
    candidates = [folder / GRAPHS_FOLDER, *(path for pattern in PUBLISHED_FILES for path in folder.glob(pattern))]
    for path in sorted(candidates):
        if path.is_symlink():
            raise ValueError(
                f"{path} is a link to {path.readlink()}, which would be published: replace it by a copy, or build in "
                "another folder"
            )


def push(folder: str | Path, repo_id: str, private: bool = False) -> str:
    """Push `published_files` in one commit to the repository `repo_id`, created if needed; returns its URL.

    Raises:
        ValueError: the folder has a link, there is no token, the repository is public although `private` is set, or
            the Hub cannot be reached or refuses the token or the name. The folder stays unchanged.
    """
    check_no_links(folder)
    token = get_token()
    if token is None:
        raise ValueError(f"there is no token for the Hub: run 'hf auth login' or set HF_TOKEN; {folder} is complete")
    api = HfApi(token=token)
    try:
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.model_info(address.repo_id).private:
            raise ValueError(
                f"{repo_id} exists already and is public: make it private on the Hub, or leave --private out; "
                f"{folder} is complete"
            )
        files = published_files(folder).keys() - own_endpoint_files(api, address.repo_id)
        api.upload_folder(
            repo_id=address.repo_id,
            folder_path=folder,
            commit_message="Upload model",
            allow_patterns=[glob.escape(name) for name in sorted(files)],
            delete_patterns=list(REPLACED_FILES),
        )
    except (HTTPError, OSError, RuntimeError) as error:
        raise ValueError(f"{explain(error, api.endpoint, repo_id)}; {folder} is complete, push it again") from error
    return str(address)


def own_endpoint_files(api: HfApi, repo_id: str) -> tuple[str, ...]:
    """`ENDPOINT_FILES` if the repository has one that this module did not write, to keep it; otherwise none."""
    for name in ENDPOINT_FILES:
        if api.file_exists(repo_id, name) and is_own(Path(api.hf_hub_download(repo_id, name))):
            return ENDPOINT_FILES
    return ()


def explain(error: BaseException, endpoint: str, repo_id: str) -> str:
    """One sentence about an error of the Hub; uploads wrap the reason in other errors."""
    while error.__cause__ is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__
    reason = getattr(error, "server_message", None) or str(error).strip() or type(error).__name__
    reason = reason.strip().splitlines()[0]
    if not isinstance(error, HfHubHTTPError):
        return f"{endpoint} cannot be reached ({reason})"
    status = error.response.status_code
    if status in (401, 403):
        return f"{endpoint} does not accept the token for {repo_id} ({status}: {reason})"
    return f"{endpoint} answered {status} for {repo_id} ({reason})"
