"""Imports: calls that wait for modules, classes that are loaded at their first use, libraries hidden by a script."""

import functools
import importlib
import os
import sys
from collections.abc import Callable, Sequence


class _Watcher:
    """A finder that lets the loaders of awaited modules run, right after the module, the calls that wait for it."""

    def __init__(self) -> None:
        self.calls: dict[str, list[Callable[[], None]]] = {}

    def find_spec(self, name, path=None, target=None):
        if name not in self.calls:
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, found), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                self.run(module.__name__)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def run(self, name: str) -> None:
        for call in self.calls.pop(name, ()):
            call()


_watcher = _Watcher()
sys.meta_path.insert(0, _watcher)


def when_imported(names: Sequence[str], call: Callable[[], None]) -> None:
    """Run `call` as soon as all modules `names` have been executed: now, or right after the last of them.

    `call` runs inside that import, when the importing modules may be half executed, so it must import nothing new.
    """
    missing = set(names)

    def arrived(name: str) -> None:
        missing.discard(name)
        if not missing:
            call()

    for name in names:
        _watcher.calls.setdefault(name, []).append(functools.partial(arrived, name))
        if name in sys.modules:
            importlib.import_module(name)  # waits if another thread is executing it
            _watcher.run(name)


class LazyClass:
    """A stand-in for a class in a registry; the class is imported when it is called or an attribute is read."""

    def __init__(self, module: str, name: str) -> None:
        self.__module__, self.__name__ = module, name

    def _load(self) -> type:
        return getattr(importlib.import_module(self.__module__), self.__name__)

    def __getattr__(self, name: str):
        if name.startswith("__"):  # copy and pickle ask for these
            raise AttributeError(name)
        return getattr(self._load(), name)

    def __call__(self, *args, **kwargs):
        return self._load()(*args, **kwargs)

    def __mro_entries__(self, bases: tuple) -> tuple[type]:  # a subclass inherits from the class itself
        return (self._load(),)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._load())

    def __subclasscheck__(self, subclass: type) -> bool:
        return issubclass(subclass, self._load())


def import_library(name: str):
    """Import an installed library even if a file beside the running script has its name.

    Python searches the script's folder first: in a script of run_scripts/, `import evaluate` would find evaluate.py.
    """
    path = sys.path[:]
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script is not None and os.path.realpath(path[0]) == os.path.realpath(os.path.dirname(script)):
        sys.path[:] = path[1:]
    try:
        return importlib.import_module(name)
    finally:
        sys.path[:] = path
