"""Build the page of this folder for a model: a folder of files that any web server, or a static Space, can show.

python hub_card/browser/build.py --model hub_card/de-en --output page

Two libraries come from npm, which must be installed; nothing else is built.
"""

import base64
import gzip
import hashlib
import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from modeling_jmnat import pipeline, spelling
from modeling_jmnat.utils.atomic_files import replace_files
from modeling_jmnat.utils.command_line import command, parse_arguments
from modeling_jmnat.utils.locks import folder_lock

HERE = Path(__file__).resolve().parent
OWN_FILES = ("README.md", "index.html", "style.css", "page.js", "worker.js", "translator.js", "service_worker.js")
PASSES_STYLE = HERE.parent / "space" / "style.css"
MODEL_FILES = (
    *("browser_translator_int8.onnx", "browser_translator.json"),
    *("config.json", "tokenizer.json", "tokenizer_config.json"),
)
# Packages of npm, with the digests of their archives and the files that the page takes.
PACKAGES = {
    "onnxruntime-web@1.30.0": (
        "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        {
            "dist/ort.wasm.bundle.min.mjs": "ort.wasm.bundle.min.mjs",
            "dist/ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
        },
    ),
    "@huggingface/tokenizers@0.2.0": (
        "sha512-LidMHe1FpcSYH4vcSjXooda34pC0M8m1gmDOv7SQi6Iv+ib1zX7J3sHBCC9/3FPCkn2k1b55FneVqMRxrr99pg==",
        {"dist/tokenizers.min.mjs": "tokenizers.min.mjs", "LICENSE": "tokenizers.LICENSE"},
    ),
}

SAMPLE = "Don't split this (or that), at 3.5 % a well-known word?"  # Moses and other rules would split it


@dataclass
class PageArguments:
    """The model of the page, and where to write it."""

    model: str = field(metadata={"help": "A trained JM-NAT model: a folder, or a name on the Hub."})
    output: str = field(metadata={"help": "Folder of the page; files of an earlier page there are replaced."})


def sentence_rules(language: str | None) -> dict[str, list[str]] | None:
    """The word lists that tell the pipeline that a sentence continues; None for a language without any."""
    if language not in pipeline.DATE_WORDS:
        return None
    rules = {
        "dates": pipeline.DATE_WORDS[language],
        "titles": pipeline.TITLES[language],
        "abbreviations": pipeline.BEFORE_OTHERS[language],
    }
    if language == "de":
        rules |= {"ordinals": pipeline.BEFORE_ORDINALS, "beginnings": pipeline.BEGINNINGS}
    return {name: sorted(words) for name, words in rules.items()}


def write_model(name: str, folder: Path) -> None:
    """Write what worker.js loads of a model, compressed with gzip.

    Raises:
        ValueError: the model is not a JM-NAT, or its tokenizer needs more than tokenizer.json.
    """
    from transformers.utils import logging

    from modeling_jmnat.inference.loading import is_jmnat, load_translator
    from modeling_jmnat.onnx_export import exporter

    export_onnx = exporter()
    logging.disable_progress_bar()
    model, tokenizer = load_translator(name, device="cpu", dtype="float32")
    if not is_jmnat(model):
        raise ValueError(f"{name} holds a {model.config.model_type} model: the page runs only JM-NAT")
    ids = tokenizer(SAMPLE)["input_ids"]
    alone = tokenizer.backend_tokenizer
    if alone.encode(SAMPLE).ids != ids or alone.decode(ids) != tokenizer.decode(ids, skip_special_tokens=True):
        raise ValueError(
            f"{name} needs more than its tokenizer.json to read or write text, such as Moses, which browsers do not "
            "have: train without it"
        )
    language = model.config.source_language
    with TemporaryDirectory() as graphs:
        export_onnx(model, graphs, int8=True, tokenizer=tokenizer, for_browsers=True)
        for file in MODEL_FILES:
            pack(Path(graphs, file).read_bytes(), folder / file)
    forms = {"plain": spelling.PLAIN_FORMS, "bullets": spelling.BULLETS}
    # The same syntax in JavaScript, but for the ends of a text.
    forms |= {"listMarks": spelling.LIST_MARKS.pattern.replace(r"\A", "^")}
    forms |= {"lastSigns": spelling.LAST_SIGNS.pattern.replace(r"\Z", "$")}
    for rules, file in ((sentence_rules(language), "sentences.json"), (forms, "spelling.json")):
        pack(json.dumps(rules, ensure_ascii=False).encode(), folder / file)


def pack(data: bytes, path: Path) -> None:
    """Write FILE.gz; the same data gives the same file."""
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(data, mtime=0))


def write_libraries(folder: Path) -> None:
    """Write the files of `PACKAGES`; raises ValueError if npm is missing, cannot get them, or gets other files."""
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError("npm is not installed, by which the libraries of the page come: install Node.js")
    for package, (integrity, names) in PACKAGES.items():
        with TemporaryDirectory() as downloads:
            packing = [npm, "pack", "--silent", "--prefer-offline", "--pack-destination", downloads, package]
            done = subprocess.run(packing, capture_output=True, text=True)
            archive = next(Path(downloads).glob("*.tgz"), None)
            if done.returncode or archive is None:
                reason = (done.stderr.strip().splitlines() or ["no archive"])[0]
                raise ValueError(f"npm does not get {package}: {reason}")
            found = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
            if found != integrity:
                raise ValueError(f"{package} is not what it was: its digest is {found}, not {integrity}")
            with tarfile.open(archive) as files:
                for member, name in names.items():
                    data = files.extractfile(f"package/{member}").read()
                    if name.endswith(".wasm"):
                        pack(data, folder / name)
                    else:
                        (folder / name).write_bytes(data)


def write_page(model: str, folder: Path) -> None:
    for name in OWN_FILES:
        shutil.copyfile(HERE / name, folder / name)
    shutil.copyfile(PASSES_STYLE, folder / "passes.css")
    for name in ("model", "vendor"):
        (folder / name).mkdir()
    write_libraries(folder / "vendor")
    write_model(model, folder / "model")
    packed = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.glob("*/*.gz"))}
    files = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in packed.items()}
    (folder / "files.json").write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")


@command
def main(argv=None):
    (arguments,) = parse_arguments(argv, PageArguments, __doc__)
    output = Path(arguments.output)
    with folder_lock(output, "output"), replace_files(output, ("model/*", "vendor/*"), ("files.json",)) as folder:
        write_page(arguments.model, folder)
    sizes = {path.relative_to(output).as_posix(): path.stat().st_size for path in sorted(output.rglob("*.*"))}
    print(json.dumps({"output": str(output), "bytes": sum(sizes.values()), "files": sizes}))


if __name__ == "__main__":
    main()
