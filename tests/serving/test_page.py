"""The page about serving: its Python prints what it says, requests are answered, the table is that of the results."""

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess

import pytest

from tests.serving.load import ROOT, running_server, table

PAGE = (ROOT / "hub_card" / "docs" / "serving.md").read_text(encoding="utf-8")
RESULTS = ROOT / "hub_card" / "results" / "serving"


@pytest.fixture(scope="module")
def port():
    pytest.importorskip("uvicorn")
    with running_server("--model", str(ROOT / "hub_card" / "de-en"), "--device", "cpu") as (_, port):
        yield port


def test_python_prints_what_it_says(port):
    pytest.importorskip("libretranslatepy")
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(block.replace("127.0.0.1:5000", f"127.0.0.1:{port}"), {})
    assert printed.getvalue().splitlines() == re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_requests_are_answered(port):
    commands = re.findall(r"^curl http://127.*?(?<!\\)$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(commands) == 3
    for command in commands:
        words = shlex.split(command.replace("127.0.0.1:5000", f"127.0.0.1:{port}").replace("\\\n", ""))
        answer = json.loads(subprocess.run([*words, "--silent"], capture_output=True, check=True, timeout=60).stdout)
        assert answer["translatedText"], answer


def test_the_load_test_is_that_of_the_results():
    for path in RESULTS.glob("*.json"):
        report = json.loads(path.read_text(encoding="utf-8"))
        assert all(row["lost"] == row["other_text"] == 0 for row in report["rows"])
        assert report["command"] in PAGE
        assert table(report) in PAGE
    assert len(list(RESULTS.glob("*.json"))) == 2
