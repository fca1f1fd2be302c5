"""`jmnat NAME ...`, or `python -m modeling_jmnat.commands NAME ...`."""

import importlib
import sys
from collections.abc import Sequence

from .. import __version__
from ..utils.command_line import command, suggestion
from . import COMMANDS


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command named by the first word with the other words as its arguments."""
    name, *words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(overview())
    elif name == "--version":
        print(f"jmnat {__version__}")
    else:
        name = name.replace("_", "-")
        if name not in COMMANDS:
            print(f"error: {unknown(name)}", file=sys.stderr)
            sys.exit(2)
        sys.argv = [f"jmnat {name}", *words]
        importlib.import_module(f".{name.replace('-', '_')}", __package__).main()


def overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        ["usage: jmnat COMMAND [--OPTION VALUE ...]", "", *lines, "", "jmnat COMMAND --help lists its options."]
    )


def unknown(name: str) -> str:
    return f"{name!r} is not a command: {suggestion(name, COMMANDS) or 'jmnat --help lists the commands'}"


if __name__ == "__main__":
    main()
