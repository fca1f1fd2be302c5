"""`hub_card/browser/build.py`: the documented command, what it refuses, and that a page needs nothing from outside."""

import base64
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile

import pytest
from transformers import AutoTokenizer

from tests.helpers.static_page import ROOT, SHIPPED, load_build
from tests.helpers.teacher_samples import random_teacher

pytest.importorskip("onnxscript", reason="the extra `bench` is not installed")

COMMANDS = ROOT / "hub_card" / "docs" / "onnx.md"


def test_the_documented_command_builds_the_page(static_page, tmp_path):
    """`static_page` skips where npm is missing, and lets it answer from its cache here."""
    (tmp_path / "hub_card").symlink_to(ROOT / "hub_card")
    [command] = re.findall(r"^python (hub_card/browser/build\.py .*?)(?:  #.*)?$", COMMANDS.read_text(), re.MULTILINE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = [sys.executable, *command.split()]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    page = tmp_path / report["output"]
    assert report["files"].keys() == {path.relative_to(page).as_posix() for path in page.rglob("*") if path.is_file()}
    for name, path in ((path.relative_to(page), path) for path in page.rglob("*") if path.is_file()):
        if name.name not in ("files.json", "browser_translator_int8.onnx.gz"):  # in which If branches change places
            assert path.read_bytes() == (static_page / name).read_bytes(), name


def test_files_are_as_files_json_says(static_page):
    files = json.loads((static_page / "files.json").read_text())["files"]
    assert set(files) == {path.relative_to(static_page).as_posix() for path in static_page.rglob("*.gz")}
    for name, of_file in files.items():
        data = (static_page / name).read_bytes()
        assert of_file == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        assert gzip.decompress(data)
    worker = (static_page / "worker.js").read_text()
    for name in files:
        assert name.removeprefix("model/").removesuffix(".json.gz").removesuffix(".gz") in worker


def test_the_page_asks_no_other_server(static_page):
    """Nothing of its own names an address; of the libraries, ONNX Runtime gets its WebAssembly from us."""
    for path in static_page.glob("*.*"):
        if path.suffix in (".html", ".css", ".js"):
            found = re.findall(r"(?:https?:)?//[\w.-]+\.\w+", path.read_text(encoding="utf-8"))
            assert set(found) <= {"http://www.w3.org"}, path  # the namespace of SVG


def test_what_the_service_worker_keeps_is_there(static_page):
    script = (static_page / "service_worker.js").read_text()
    kept = re.findall(r'"([^"]+)"', re.search(r"FILES = \[(.*?)\]", script, re.DOTALL)[1])
    shown = {path.relative_to(static_page).as_posix() for path in static_page.rglob("*") if path.is_file()}
    unneeded = {"README.md", "service_worker.js", "vendor/tokenizers.LICENSE"}
    assert {"./", *(name for name in shown if not name.endswith(".gz"))} - unneeded == set(kept)


def test_other_models_are_refused(tmp_path):
    build = load_build()
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    random_teacher(tokenizer).save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    with pytest.raises(ValueError, match="holds a .* model: the page runs only JM-NAT"):
        build.write_model(str(tmp_path / "teacher"), tmp_path)
    shutil.copytree(SHIPPED, tmp_path / "moses")
    options = json.loads((SHIPPED / "tokenizer_config.json").read_text())
    options |= {"moses_source_lang": "de", "moses_target_lang": "en"}
    (tmp_path / "moses" / "tokenizer_config.json").write_text(json.dumps(options))
    with pytest.raises(ValueError, match="moses needs more than its tokenizer.json to read or write text"):
        build.write_model(str(tmp_path / "moses"), tmp_path)


def test_libraries_are_those_that_were_tested(tmp_path, monkeypatch):
    """An archive with another digest, an npm that fails, and none."""
    build = load_build()
    archive = tmp_path / "library.tgz"
    (tmp_path / "code.mjs").write_text("export const x = 1;")
    with tarfile.open(archive, "w:gz") as files:
        files.add(tmp_path / "code.mjs", "package/dist/code.mjs")
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    npm = tmp_path / "npm"
    npm.write_text(f'#!/bin/sh\ncp {archive} "$5/library-1.0.0.tgz"\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(build, "PACKAGES", {"library@1.0.0": (integrity, {"dist/code.mjs": "library.mjs"})})
    build.write_libraries(tmp_path)
    assert (tmp_path / "library.mjs").read_text() == "export const x = 1;"
    monkeypatch.setattr(build, "PACKAGES", {"library@1.0.0": ("sha512-other", {})})
    with pytest.raises(ValueError, match=r"library@1\.0\.0 is not what it was: .* sha512-.*, not sha512-other"):
        build.write_libraries(tmp_path)
    npm.write_text("#!/bin/sh\necho 'no such package' >&2; exit 1\n")
    with pytest.raises(ValueError, match=r"npm does not get library@1\.0\.0: no such package"):
        build.write_libraries(tmp_path)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="npm is not installed"):
        build.write_libraries(tmp_path)
