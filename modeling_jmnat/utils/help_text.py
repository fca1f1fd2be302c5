"""The text of `--help`, made only from the dataclasses of options, without the libraries that parsing needs."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

PLACEHOLDERS = {int: "N", float: "X"}


def help_text(
    prog: str,
    description: str,
    groups: Sequence[type],
    defaults: Mapping[str, Any] | None = None,
    usage: str | None = None,
) -> str:
    """The usage, the description, and the docstring and options of each dataclass in `groups`.

    Args:
        defaults: values by field name that override the fields' own defaults, such as those of a preset.
        usage: default: the command with its required options.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=usage or usage_of(groups),
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    for group in groups:
        section = parser.add_argument_group((group.__doc__ or "options").splitlines()[0].rstrip("."))
        types = get_type_hints(group)
        for field in dataclasses.fields(group):
            default = (defaults or {}).get(field.name, default_of(field))
            section.add_argument(*option_names(field), **describe(field, types[field.name], default))
    return parser.format_help()


def usage_of(groups: Sequence[type]) -> str:
    """The command with its required options."""
    fields = [field for group in groups for field in dataclasses.fields(group)]
    needed = [
        f"{option_names(field)[0]} {field.name.upper()}"
        for field in fields
        if default_of(field) is dataclasses.MISSING
    ]
    return " ".join(["%(prog)s", *needed, "[--OPTION VALUE ...]"])


def option_names(field: dataclasses.Field) -> list[str]:
    """The spellings of an option, the preferred one first."""
    return [*field.metadata.get("aliases", ()), f"--{field.name}"]


def default_of(field: dataclasses.Field) -> Any:
    """The default of a field, or `dataclasses.MISSING`."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def describe(field: dataclasses.Field, kind: Any, default: Any) -> dict[str, Any]:
    """Arguments for argparse to show an option: its metavar, and its help with the default unless the help says it."""
    several = any(get_origin(member) is list for member in (kind, *get_args(kind)))
    while get_args(kind) and get_origin(kind) is not Literal:  # X | None, list[X] and list[X] | None
        kind = next(member for member in get_args(kind) if member is not NoneType)
    text = field.metadata.get("help", "")
    if default is dataclasses.MISSING:
        text += " (required)"
    elif default is True:
        text += f" (default: true; --no_{field.name} switches it off)"
    elif default not in (None, False, "", []) and "Default:" not in text:
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        text += f" (default: {shown})"
    shown_as: dict[str, Any] = {"help": text.replace("%", "%%")}
    if kind is bool:
        return {**shown_as, "action": "store_true"}
    name = "|".join(get_args(kind)) or PLACEHOLDERS.get(kind, field.name.upper())
    return {**shown_as, "metavar": name, "nargs": "+" if several else None}
