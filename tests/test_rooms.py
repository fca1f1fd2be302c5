"""The rooms of the package: who may import whom. Imports inside functions count as well."""

import ast
from pathlib import Path

import pytest

import modeling_jmnat

PACKAGE = Path(modeling_jmnat.__file__).parent
# From the ground up: a room imports only rooms above it in this list, and modules of its own.
ROOMS = (
    "utils",
    "model",
    "data",
    "inference",
    "documents",
    "serving",
    "training",
    "teacher",
    "baselines",
    "onnx_export",
    "evaluation",
    "hub",
    "benchmark",
    "experiments",
    "commands",
)
# The room "model": what travels with the weights, at the top of the package.
TRAVELLING = (
    "configuration_jmnat",
    "losses_jmnat",
    "crf_jmnat",
    "passes_jmnat",
    "generation_jmnat",
    "modeling_jmnat",
    "tokenization_jmnat",
    "spelling",
    "plain_text",
    "segmenters",
    "pipeline",
)
LONGEST_MODULE, LONGEST_FUNCTION = 450, 60  # lines; modeling_jmnat.py may be longer
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """`teacher.model` of modeling_jmnat/teacher/model.py."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


NAMES = {name_of(path).removesuffix(".__init__") for path in MODULES} - {"__init__"}


def room_of(module: str) -> str:
    return "model" if module in TRAVELLING else module.split(".")[0]


def imported_modules(path: Path) -> set[str]:
    """Modules of this package that a module imports, anywhere in it."""
    base = list(path.relative_to(PACKAGE).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = base[: len(base) - (node.level - 1)] + (node.module.split(".") if node.module else [])
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "modeling_jmnat":
            parts = node.module.split(".")[1:]
        elif isinstance(node, ast.Import):
            own = [alias.name.split(".")[1:] for alias in node.names if alias.name.split(".")[0] == "modeling_jmnat"]
            found.update(".".join(parts) for parts in own)
            continue
        else:
            continue
        for alias in node.names:  # `from ..utils import markdown` imports a module, `from .model import x` a name
            module = ".".join([*parts, alias.name])
            found.add(module if module in NAMES else ".".join(parts))
    return found


IMPORTS = {
    name_of(path): imported_modules(path) for path in MODULES if path.parent != PACKAGE or path.stem != "__init__"
}


def test_the_top_of_the_package_has_only_travelling_files():
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", *TRAVELLING}
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == {*ROOMS} - {
        "model"
    }


@pytest.mark.parametrize("module", sorted(IMPORTS))
def test_a_room_imports_only_rooms_above_it(module):
    allowed = ROOMS[: ROOMS.index(room_of(module)) + 1]
    against = sorted(name for name in IMPORTS[module] if name and room_of(name) not in allowed)
    assert not against, f"{module} imports {', '.join(against)}: rooms from the ground up are {', '.join(ROOMS)}"


@pytest.mark.parametrize("module", sorted(IMPORTS))
def test_no_module_imports_the_package_itself(module):
    """`from .. import X` of a public name would load whatever the package's `__init__` loads, in any room."""
    if room_of(module) == "commands":
        return
    assert "" not in IMPORTS[module]


@pytest.mark.parametrize("module", TRAVELLING)
def test_travelling_files_import_each_other_by_name_alone(module):
    """Transformers finds `from .name import` in FOLDER/name.py and copies flat; any other form breaks on the Hub."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert all(alias.name.split(".")[0] != "modeling_jmnat" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1
            assert node.module in TRAVELLING
        elif isinstance(node, ast.ImportFrom):
            assert node.module.split(".")[0] != "modeling_jmnat"


def test_no_circular_imports():
    done, open_now = set(), []

    def visit(module):
        if module in done or module not in IMPORTS:
            return
        assert module not in open_now, " -> ".join([*open_now[open_now.index(module) :], module])
        open_now.append(module)
        for name in sorted(IMPORTS[module]):
            visit(name)
        open_now.pop()
        done.add(module)

    for module in IMPORTS:
        visit(module)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    if path.stem != "modeling_jmnat":
        assert len(text.splitlines()) <= LONGEST_MODULE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= LONGEST_FUNCTION, node.name


def test_tests_mirror_the_rooms():
    folders = {path.name for path in Path(__file__).parent.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders - set(ROOMS) == {"helpers", "space", "transformers_common"}
