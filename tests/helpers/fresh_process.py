"""Another Python process in which this package cannot be imported, as at a user's who has Transformers and PyTorch."""

import os
import subprocess
import sys
from pathlib import Path

BLOCK = """
import importlib.util, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Blocked())
try:
    import modeling_jmnat
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the package can be imported")
"""


def run_without_package(code: str, home: Path, cwd: Path, *arguments, blocked=(), **variables: str) -> str:
    """Run `code` with `sys.argv[1:]` = arguments and the Hub's cache in `home`; its standard output.

    `blocked` are further modules that cannot be imported there.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHONPATH"))}
    environment.update(HF_HOME=str(home), PYTHONPATH="", HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1")
    environment.update(variables)
    preamble = BLOCK.format(blocked=("modeling_jmnat", *blocked))
    run = subprocess.run(
        [sys.executable, "-c", preamble + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout
