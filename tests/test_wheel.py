"""The wheel alone, installed away from the checkout, can do everything: prepare, train, translate."""

import email
import gzip
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "run_scripts" / "demo_data" / "libreoffice-help"
PRESET = """
model: {d_model: 16, encoder_layers: 1, encoder_attention_heads: 2, encoder_ffn_dim: 32,
        decoder_layers: 1, decoder_attention_heads: 2, decoder_ffn_dim: 32, normalize_before: true}
training: {max_steps: 5, max_tokens: 300, learning_rate: 0.001, warmup_steps: 2, eval_strategy: "no", use_cpu: true}
"""


def run(*command, **options) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that the leftovers of a build cannot get into the next one."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "modeling_jmnat", source / "modeling_jmnat", ignore=shutil.ignore_patterns("__pycache__"))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", output, source)
    (path,) = output.glob("modeling_jmnat-*.whl")
    return path


@pytest.fixture(scope="module")
def home(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel; the packages it needs come from the one of these tests, the checkout does not."""
    home = tmp_path_factory.mktemp("home")
    venv.create(home / "venv", symlinks=True)
    python = home / "venv" / "bin" / "python"
    (packages,) = (home / "venv").glob("lib/python*/site-packages")
    paths = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (packages / "others.pth").write_text("\n".join(paths))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    run(*pip, "install", "--no-deps", "--no-index", wheel)
    return home


@pytest.fixture(scope="module")
def jmnat(home):
    """The console command, run in `home`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "JMNAT_", "HF_"))}
    environment = {**kept, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "hub")}

    def command(*words):
        return run(home / "venv" / "bin" / "jmnat", *words, cwd=home, env=environment)

    command.environment = environment
    return command


def test_the_package_index_shows_the_readme_without_a_link_that_ends_there(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(archive.read(name))
    assert metadata["Description-Content-Type"] == "text/markdown"
    shown, readme = metadata.get_payload(), (ROOT / "README.md").read_text()
    targets = re.findall(r"\]\(([^)]+)\)", shown)
    assert targets
    assert all(target.startswith(("https://", "#")) for target in targets)
    absolute = [target for target in re.findall(r"\]\(([^)]+)\)", readme) if target.startswith(("https://", "#"))]
    assert targets == absolute
    assert "[" not in shown.split("## Documents")[1].split("##")[0]
    assert [line for line in shown.splitlines() if line.startswith("#")] == [
        line for line in readme.splitlines() if line.startswith("#")
    ]


def test_links_of_the_readme_become_absolute_with_an_address():
    with_absolute_links = runpy.run_path(str(ROOT / "setup.py"))["with_absolute_links"]
    text = "![a](b.png) [c\nd](e/f.md#g) [h](https://i) [j](#k)"
    assert with_absolute_links(text, "https://host/a") == (
        "![a](https://host/a/raw/HEAD/b.png) [c\nd](https://host/a/blob/HEAD/e/f.md#g) [h](https://i) [j](#k)"
    )
    assert with_absolute_links(text, None) == " c\nd [h](https://i) [j](#k)"


def test_the_wheel_holds_the_package_and_its_data(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    folders = {name.split("/")[0] for name in names}
    assert folders == {"modeling_jmnat", wheel.name.split("-py3")[0] + ".dist-info"}
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "modeling_jmnat").rglob("*") if path.is_file()}
    assert {name for name in names if name.startswith("modeling_jmnat/")} == {
        name for name in ours if "__pycache__" not in name
    }


@pytest.mark.slow
def test_it_prepares_trains_and_translates(home, jmnat):
    files = {}
    for split, lines in (("train", 500), ("valid", 20)):
        for side, language in (("source", "de"), ("target", "en")):
            with gzip.open(CORPUS / f"{split}.{language}.gz", "rt", encoding="utf-8") as file:
                text = [next(file) for _ in range(lines)]
            files[side, split] = home / f"{split}.{language}"
            files[side, split].write_text("".join(text), encoding="utf-8")
    splits = (("train", "train"), ("validation", "valid"))
    texts = [word for name, split in splits for side in ("source", "target")
             for word in (f"--{name}_{side}", files[side, split])]  # fmt: skip
    prepared = jmnat("prepare", "--output_dir", "data", "--vocab_size", 400, *texts)
    assert json.loads(prepared.splitlines()[-1])["pairs"]["train"]["kept"] > 400
    (home / "tiny.yaml").write_text(PRESET)
    trained = jmnat("train", "--preset", "tiny.yaml", "--data", "data", "--output_dir", "model")
    assert json.loads(trained.splitlines()[-1])["steps"] == 5
    translated = jmnat("translate", "--model", "model", "--input", "valid.de", "--num_iterations", 2)
    assert len(translated.splitlines()) == 20


def test_nothing_comes_from_the_checkout(home, jmnat):
    code = "import sys, modeling_jmnat.commands.translate as module; print(module.__file__, *sys.path, sep='\\n')"
    file, *paths = run(home / "venv" / "bin" / "python", "-c", code, cwd=home, env=jmnat.environment).splitlines()
    assert Path(file).is_relative_to(home)
    assert str(ROOT) not in paths
    version = jmnat("--version").split()[1]
    assert (home / "venv").glob(f"lib/python*/site-packages/modeling_jmnat-{version}.dist-info")
    assert "demo, from_teacher, iwslt14," in " ".join(jmnat("train", "--help").split())


def test_the_model_of_the_checkout_is_not_there_and_that_is_said(home, jmnat):
    command = [home / "venv" / "bin" / "jmnat", "translate"]
    done = subprocess.run(command, input="x\n", capture_output=True, text=True, cwd=home, env=jmnat.environment)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the model that comes with this project cannot be found: jmnat/jmnat-de-en is no")
    assert line.endswith("give --model, a folder or a name on the Hub")
