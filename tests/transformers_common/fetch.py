"""Lay out the tests that the installed Transformers applies to each of its models, as an importable package.

The source distribution on PyPI holds the common test classes, but not everything that they import: the rest is stubbed
here. `python tests/transformers_common/fetch.py` prints the folder to put on the path; it is made once per version.
Without a source distribution it prints one sentence and ends with code 75 (nothing was tested).
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "runs" / "transformers_tests"
PACKAGE = "transformers_tests"  # ends in "tests": the library looks for its fixtures in the nearest such folder
ARCHIVE = "JMNAT_TRANSFORMERS_SDIST"  # environment variable: a source distribution that is at hand
NOT_AVAILABLE = 75

# Values that every configuration must take and give back; the library checks each of its own the same way.
COMMON_VALUES = """config_common_kwargs = {
    "return_dict": False,
    "output_hidden_states": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["OneModel"],
    "id2label": {0: "label"},
    "label2id": {"label": "0"},
    "problem_type": "regression",
    "tie_word_embeddings": False,
    "is_encoder_decoder": True,
}
"""
STUBS = {
    "__init__.py": "",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/__init__.py": "",
    "utils/test_configuration_utils.py": COMMON_VALUES,
    "fixtures/sample_text.txt": "Click the button to save the document.\n\nThe file is open.\n",
}


def find_archive(version: str, folder: Path) -> Path:
    """The source distribution: the file that the environment names, or PyPI's, downloaded into `folder`.

    Raises:
        FileNotFoundError: neither can be had; the message says why.
    """
    named = os.environ.get(ARCHIVE)
    if named:
        if not Path(named).is_file():
            raise FileNotFoundError(f"{ARCHIVE}={named} is no file")
        return Path(named)
    command = [sys.executable, "-m", "pip", "download", f"transformers=={version}", "--no-binary", "transformers"]
    command += ["--no-deps", "--no-build-isolation", "--retries", "1", "--timeout", "20", "--quiet"]
    done = subprocess.run([*command, "--dest", folder], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    archives = list(folder.glob("*.tar.gz"))
    if done.returncode or not archives:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise FileNotFoundError(f"pip could not download it ({reason})")
    return archives[0]


def unpack(archive: Path, package: Path) -> None:
    """Write the modules directly under `tests/` of the archive and the stubs into the folder `package`.

    Raises:
        FileNotFoundError: the archive holds no such modules.
    """
    package.mkdir(parents=True)
    with tarfile.open(archive) as members:
        for member in members:
            parts = Path(member.name).parts
            if member.isfile() and len(parts) == 3 and parts[1] == "tests" and parts[2].endswith(".py"):
                (package / parts[2]).write_bytes(members.extractfile(member).read())
    if not (package / "test_modeling_common.py").is_file():
        raise FileNotFoundError(f"{archive.name} does not hold the common tests")
    for name, text in STUBS.items():
        path = package / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_text(text, encoding="utf-8")


def lay_out(version: str, cache: Path = CACHE) -> Path:
    """The folder with the package for this version; made, complete or not at all, when it is missing."""
    folder = cache / version
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        downloaded, laid_out = Path(temporary) / "download", Path(temporary) / "package"
        downloaded.mkdir()
        unpack(find_archive(version, downloaded), laid_out / PACKAGE)
        shutil.move(laid_out, folder)
    return folder


def main() -> None:
    version = transformers.__version__
    try:
        print(lay_out(version))
    except FileNotFoundError as error:
        print(f"no source distribution of transformers {version}: {error}", file=sys.stderr)
        sys.exit(NOT_AVAILABLE)


if __name__ == "__main__":
    main()
