"""What `--help` of each command prints."""

import json
import subprocess
import sys
from collections.abc import Sequence

EVERY_HELP = """
import contextlib, io, json, sys
blocked = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(blocked))
from modeling_jmnat.commands import COMMANDS
from modeling_jmnat.commands.__main__ import main
texts = {}
for name in COMMANDS:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([name, "--help"])
    texts[name] = printed.getvalue()
print(json.dumps(texts))
"""


def every_help(blocked: Sequence[str] = ()) -> dict[str, str]:
    """The help of each command by its name, in a process that cannot import the modules `blocked`."""
    run = subprocess.run(
        [sys.executable, "-c", EVERY_HELP, json.dumps(blocked)], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)
