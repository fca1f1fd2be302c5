"""Write the parts of the pages in this folder that are made from the code: `python hub_card/docs/made_from_code.py`.

A part stands between `<!-- made: NAME -->` and `<!-- end -->`. Names are those of `PARTS`, or `class NAME` for a
public name of the package. Prints the pages that have changed.
"""

import ast
import importlib
import inspect
import re
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from textwrap import dedent

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import modeling_jmnat
from modeling_jmnat.commands import COMMANDS
from modeling_jmnat.configuration_jmnat import JMNatGenerationConfig, JMNatOptions, under_own_names
from modeling_jmnat.generation_jmnat import SUBSTITUTES, UNDERSTOOD_OPTIONS
from modeling_jmnat.training.options import StudentOptions
from modeling_jmnat.utils.markdown import markdown

HERE = Path(__file__).resolve().parent
PART = re.compile(r"(<!-- made: (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)
SECTION = re.compile(r"^(\w[^\n]*):\n((?: {4}.*\n|\n)+)", re.MULTILINE)
METHODS = {  # beside the signature of the class itself
    "DataCollatorForJMNat": ("__call__", "set_epoch", "evaluation"),
    "JMNatConfig": ("for_tokenizer",),
    "JMNatForConditionalGeneration": ("forward", "generate"),
    "JMNatModel": ("forward",),
    "ORTJMNatForConditionalGeneration": ("from_pretrained",),
}


def write_pages(folder: Path) -> list[str]:
    """Write all made parts of the pages in `folder`; returns the names of the pages that have changed."""
    changed = []
    for path in sorted(folder.glob("*.md")):
        old = path.read_text(encoding="utf-8")
        new = PART.sub(lambda found: f"{found[1]}{part(found[2])}\n{found[3]}", old)
        if new != old:
            path.write_text(new, encoding="utf-8")
            changed.append(path.name)
    return changed


def part(name: str) -> str:
    kind, _, argument = name.partition(" ")
    return (class_reference(argument) if kind == "class" else PARTS[name]()).strip()


# Tables --------------------------------------------------------------------------------------------------------------


def generation_options() -> str:
    """Meaning, default and cost of each option, from the docstring of `JMNatGenerationConfig`."""
    described = dict(entries(docstring_sections(JMNatGenerationConfig)["Args"]))
    rows = []
    for option in fields(JMNatOptions):
        text, _, cost = described[option.name].partition(" Cost: ")
        meaning, default = split_default(text)
        rows.append([f"`{option.name}`", meaning, default or f"`{option.default!r}`", cost.rstrip(".") or "none"])
    return markdown(["option", "meaning", "default", "cost"], rows)


def split_default(text: str) -> tuple[str, str]:
    """A description without the default in parentheses at its end, and the default: `"meaning (10)."`."""
    found = re.fullmatch(r"(.*?) \(([^()]*)\)(\. .*)?\.?", text)
    assert found is not None, f"no default at the end of {text!r}"
    value, _, remark = found[2].partition(": ")
    shown = value if "`" in value else f"`{value}`"
    return found[1] + (found[3] or "").rstrip("."), f"{shown}: {remark}" if remark else shown


def library_options() -> str:
    """What becomes of the options of Transformers' `generate`."""
    rows = []
    for name in UNDERSTOOD_OPTIONS:
        own = [key for key, value in under_own_names({name: 1}).items() if value == 1 and key != name]
        token = "must be the model's own" if name.endswith("token_id") else "accepted, without effect"
        rows.append([f"`{name}`", f"taken for `{own[0]}`" if own else token])
    for sentence, names in SUBSTITUTES.items():
        use = re.sub(r"^did you mean (.*)\?$", r"use \1", sentence)
        use = re.sub(r"\b([a-z]+_\w+(?:=True)?|generate)\b", r"`\1`", use)
        rows.append([", ".join(f"`{name}`" for name in names), use])
    return markdown(["option of Transformers", "here"], rows)


def commands() -> str:
    return markdown(["command", "what it does"], [[f"`jmnat {name}`", text] for name, text in COMMANDS.items()])


def training_options() -> str:
    """What `JMNatTrainingArguments` add to Transformers' own, and the fields that have another default."""
    rows = []
    for option in fields(StudentOptions):
        default = option.default_factory() if option.default is MISSING else option.default
        rows.append([f"`{option.name}`", option.metadata["help"].rstrip("."), f"`{default!r}`"])
    return markdown(["field", "meaning", "default"], rows)


PARTS = {
    "generation options": generation_options,
    "library options": library_options,
    "commands": commands,
    "training options": training_options,
}


# Reference -----------------------------------------------------------------------------------------------------------


def class_reference(name: str) -> str:
    """Module, signature and docstring of a public name, and of its methods in `METHODS`."""
    cls = getattr(modeling_jmnat, name)
    text = f"`{cls.__module__}.{name}`\n\n```py\n{signature(cls)}\n```\n\n{documented(cls)}"
    for method in METHODS.get(name, ()):
        owner = next(base for base in cls.__mro__ if method in vars(base))
        function = inspect.unwrap(getattr(owner, method))
        text += f"\n\n### {name}.{method}\n\n```py\n{signature(getattr(function, '__func__', function))}\n```\n\n"
        text += documented(function)
    return text


def signature(thing) -> str:
    """As in the source, so that it is the same in every version of Python: arguments, or the fields of a dataclass."""
    node = ast.parse(dedent(inspect.getsource(thing))).body[0]
    if isinstance(node, ast.FunctionDef):
        return call(node.name, node.args, node.returns)
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__" and not item.args.kwarg:
            return call(node.name, item.args, None)
    lines = dedent(inspect.getsource(thing)).splitlines()
    annotated = [item for item in node.body if isinstance(item, ast.AnnAssign) and item.value]
    shown = [lines[item.lineno - 1] for item in annotated if not item.target.id.startswith("_")]
    if shown:
        return "\n".join([f"class {node.name}({', '.join(ast.unparse(base) for base in node.bases)}):", *shown])
    return f"{node.name}({', '.join(ast.unparse(base) for base in node.bases)})"


def call(name: str, arguments: ast.arguments, returns) -> str:
    if arguments.args and arguments.args[0].arg in ("self", "cls"):
        del arguments.args[0]
    parts = [ast.unparse(ast.arguments([], [item], None, [], [], None, [])) for item in arguments.args]
    for place, value in zip(range(-len(arguments.defaults), 0), arguments.defaults, strict=True):
        equals = " = " if arguments.args[place].annotation else "="
        parts[place] += f"{equals}{ast.unparse(value)}"
    if arguments.vararg:
        parts.append(f"*{arguments.vararg.arg}")
    if arguments.kwarg:
        parts.append(f"**{arguments.kwarg.arg}")
    end = f" -> {ast.unparse(returns)}" if returns else ""
    line = f"{name}({', '.join(parts)}){end}"
    return line if len(line) <= 88 else in_lines(name, parts) + end


def in_lines(name: str, parts: list[str]) -> str:
    return "\n".join([f"{name}(", *(f"    {item}," for item in parts), ")"])


def documented(thing) -> str:
    """A docstring as Markdown: the arguments and errors as lists."""
    pieces = []
    for title, text in docstring_sections(thing).items():
        if not title:
            pieces.append(plain(text).replace("\n    - ", "\n- "))
        elif title.startswith(("Args", "Raises", "Options")):
            listed = [f"- `{name}`: {plain(value)}" for name, value in entries(text)]
            pieces.append(f"{title.replace('Args', 'Arguments', 1)}:\n\n" + "\n".join(listed))
        else:
            pieces.append(f"{title}:\n\n{plain(dedent(text))}")
    return "\n\n".join(piece.strip() for piece in pieces)


def docstring_sections(thing) -> dict[str, str]:
    """Text by title; the text outside of any section has the title ""."""
    text = f"{inspect.getdoc(thing)}\n"
    found = {match[1]: match[2].rstrip() for match in SECTION.finditer(text)}
    return {"": SECTION.sub("", text).strip(), **found}


def entries(section: str) -> list[tuple[str, str]]:
    """The arguments (or errors) of a section with their descriptions, each on one line."""
    items = re.split(r"\n(?=\S)", dedent(section))
    return [(name, " ".join(text.split())) for name, _, text in (item.partition(":") for item in items)]


def plain(text: str) -> str:
    """Text in which what Markdown would take for markup is escaped, code apart."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(piece if piece.startswith("`") else re.sub(r"([*<>])", r"\\\1", piece) for piece in pieces)


if __name__ == "__main__":
    importlib.invalidate_caches()
    print(*write_pages(HERE) or ["nothing has changed"], sep="\n")
