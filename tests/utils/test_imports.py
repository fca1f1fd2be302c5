"""Calls that import modules on first use, and classes that stand in for others until they are used."""

import copy
import importlib
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import modeling_jmnat
from modeling_jmnat.utils.imports import LazyClass, when_imported


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Names of two modules that have not been imported; the second imports the first."""
    names = [f"awaited_{tmp_path.name}_{letter}".replace("-", "_") for letter in "ab"]
    (tmp_path / f"{names[0]}.py").write_text("class Thing:\n    size = 3\n\n    def __init__(self, n=0): self.n = n\n")
    (tmp_path / f"{names[1]}.py").write_text(f"from {names[0]} import Thing\nlast = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield names
    for name in names:
        sys.modules.pop(name, None)


def test_a_call_waits_for_all_its_modules(modules):
    first, second = modules
    calls = []
    when_imported([first], lambda: calls.append("first"))
    when_imported([second, first], lambda: calls.append(("both", hasattr(sys.modules[second], "last"))))
    assert calls == []
    importlib.import_module(first)
    assert calls == ["first"]
    importlib.import_module(second)
    assert calls == ["first", ("both", True)]
    when_imported([first, second], lambda: calls.append("again"))
    assert calls.count("again") == 1
    importlib.reload(sys.modules[first])
    assert len(calls) == 3
    assert sys.modules[first].__spec__.origin.endswith(f"{first}.py")


def test_a_module_that_fails_is_still_awaited(modules, tmp_path):
    first = modules[0]
    path = tmp_path / f"{first}.py"
    text, calls = path.read_text(), []
    when_imported([first], lambda: calls.append(1))
    path.write_text("raise RuntimeError\n")
    with pytest.raises(RuntimeError):
        importlib.import_module(first)
    assert not calls
    path.write_text(text + "# and more\n")
    importlib.import_module(first)
    assert calls == [1]
    when_imported(["absent_module"], calls.clear)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("absent_module")
    assert calls == [1]


def test_a_module_that_another_thread_executes_is_waited_for(modules, tmp_path):
    first = modules[0]
    (tmp_path / f"{first}.py").write_text("import time\ntime.sleep(0.5)\nready = True\n")
    thread = threading.Thread(target=importlib.import_module, args=(first,))
    thread.start()
    while first not in sys.modules:
        pass
    seen = []
    when_imported([first], lambda: seen.append(sys.modules[first].ready))
    assert seen == [True]
    thread.join()


def test_a_lazy_class_is_loaded_when_it_is_used(modules):
    first = modules[0]
    lazy = LazyClass(first, "Thing")
    assert lazy.__name__ == "Thing"
    assert copy.deepcopy(lazy).__name__ == pickle.loads(pickle.dumps(lazy)).__name__ == "Thing"
    assert first not in sys.modules
    assert lazy.size == 3
    assert type(lazy(n=5)) is sys.modules[first].Thing
    assert lazy(n=5).n == 5
    with pytest.raises(AttributeError):
        _ = lazy.absent


def test_a_lazy_class_can_stand_where_a_class_does(modules):
    """What Transformers and its users do with the entries of its registries."""
    lazy = LazyClass(modules[0], "Thing")

    class Child(lazy):
        pass

    real = sys.modules[modules[0]].Thing
    assert Child.__mro__[:2] == (Child, real)
    assert isinstance(real(n=5), lazy)
    assert isinstance(Child(n=5), lazy)
    assert not isinstance(5, lazy)
    assert issubclass(Child, lazy)
    assert not issubclass(int, lazy)


def test_a_script_of_the_same_name_does_not_hide_a_library(tmp_path):
    """As run_scripts/evaluate.py does; the folder of the script serves its other imports as before."""
    code = "import sys\nfrom modeling_jmnat.utils.imports import import_library\n"
    code += (
        "found = import_library('evaluate')\nimport helper\nprint(found.__file__, hasattr(found, 'load'), helper.x)\n"
    )
    for name in ("evaluate", "other"):
        (tmp_path / f"{name}.py").write_text(code)
    (tmp_path / "helper.py").write_text("x = 3\n")
    root = Path(modeling_jmnat.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    for name in ("evaluate", "other"):
        for folder, script in ((tmp_path, f"{name}.py"), (root, tmp_path / f"{name}.py")):
            command = [sys.executable, str(script)]
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            file, has_load, x = done.stdout.split()
            assert Path(file).parent != tmp_path
            assert (has_load, x) == ("True", "3")
