"""Two minutes of `tests.soak`, in a process of its own: it forks, and signals the forks."""

import json
import os
import subprocess
import sys

import pytest

MINUTES = float(os.environ.get("JMNAT_SOAK_MINUTES", "2"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked and file systems mounted as Linux does")
@pytest.mark.timeout(60 * MINUTES + 600)
def test_repeated_kills_lose_nothing(tmp_path):
    command = [sys.executable, "-m", "tests.soak", "--minutes", str(MINUTES)]
    run = subprocess.run(command, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True)
    lines = run.stdout.splitlines()
    assert "".join(lines[-1:]).startswith("{"), (run.stdout + run.stderr)[-3000:]
    found = json.loads(lines[-1])
    assert found["failures"] == []
    assert found["same"] == found["trials"] > 0
    assert run.returncode == 0
