"""Where Transformers' own tests come from: laid out once, complete or not at all; a code of its own without them."""

import importlib.util
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import transformers

SCRIPT = Path(__file__).parent / "fetch.py"


@pytest.fixture(scope="module")
def fetch():
    spec = importlib.util.spec_from_file_location("fetch_common_tests", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_archive(folder, *names):
    for name in names:
        path = folder / "transformers-0.1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"NAME = {name!r}\n")
    archive = folder / "transformers-0.1.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder / "transformers-0.1", "transformers-0.1")
    return archive


def test_package_has_the_common_tests_and_what_they_import(fetch, tmp_path, monkeypatch):
    names = ["tests/test_modeling_common.py", "tests/deep/test_bert.py", "tests/data.json", "src/module.py"]
    monkeypatch.setenv(fetch.ARCHIVE, str(make_archive(tmp_path, *names)))
    folder = fetch.lay_out("0.1", tmp_path / "cache")
    found = {path.relative_to(folder / fetch.PACKAGE).as_posix() for path in folder.rglob("*.*")}
    assert found == {"test_modeling_common.py", *fetch.STUBS}
    assert "NAME" in (folder / fetch.PACKAGE / "test_modeling_common.py").read_text()
    monkeypatch.setenv(fetch.ARCHIVE, "/nowhere")  # a second time nothing is needed
    assert fetch.lay_out("0.1", tmp_path / "cache") == folder
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["0.1"]


def test_an_archive_without_tests_leaves_nothing(fetch, tmp_path, monkeypatch):
    monkeypatch.setenv(fetch.ARCHIVE, str(make_archive(tmp_path, "src/module.py")))
    with pytest.raises(FileNotFoundError, match="does not hold the common tests"):
        fetch.lay_out("0.1", tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_without_the_distribution_there_is_a_sentence(fetch, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(fetch.ARCHIVE, str(tmp_path / "none.tar.gz"))
    monkeypatch.setattr(fetch.lay_out, "__defaults__", (tmp_path / "cache",))
    with pytest.raises(SystemExit) as stopped:
        fetch.main()
    assert stopped.value.code == fetch.NOT_AVAILABLE == 75
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"no source distribution of transformers {transformers.__version__}: ")
    assert err.count("\n") == 1


def test_pip_is_asked_for_this_very_version(fetch, tmp_path, monkeypatch):
    monkeypatch.delenv(fetch.ARCHIVE, raising=False)
    asked = []

    def refuse(command, **kwargs):
        asked.extend(command)
        return subprocess.CompletedProcess(command, 1, stderr="WARNING: slow\nERROR: no network\n")

    monkeypatch.setattr(fetch.subprocess, "run", refuse)
    with pytest.raises(FileNotFoundError, match=r"pip could not download it \(ERROR: no network\)"):
        fetch.lay_out("9.8", tmp_path / "cache")
    assert asked[:5] == [sys.executable, "-m", "pip", "download", "transformers==9.8"]
    assert not list((tmp_path / "cache").iterdir())
