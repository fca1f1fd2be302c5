"""python -m modeling_jmnat.commands NAME [OPTIONS]: run the command of this package whose module has that name."""

import importlib
import pkgutil
import sys

from . import __path__ as folders

COMMANDS = sorted(module.name for module in pkgutil.iter_modules(folders) if not module.name.startswith("_"))


def main(argv=None):
    name, *options = (sys.argv[1:] if argv is None else argv) or [""]
    if name not in COMMANDS:
        sys.exit(f"error: {name!r} is not one of {', '.join(COMMANDS)}")
    importlib.import_module(f".{name}", __package__).main(options)


if __name__ == "__main__":
    main()
