"""Format placeholders in a text, such as %s, %(n)d, {name} and ${x}: a translation must have the same ones.

A translator reads a stand-in for each, `XQ1`, `XQ2`, ..., which looks like a model number and is copied as such.
"""

import re
from collections.abc import Callable, Iterable, Iterator

PLACEHOLDER = re.compile(
    r"%\([A-Za-z_]\w*\)[-+ 0#]?\d*(?:\.\d+)?[a-zA-Z]|%\d+\$[-+ 0#]*\d*(?:\.\d+)?[a-zA-Z]+|%\d+(?!\w)|\$\{[^{}]*\}|"
    r"\{\{[^{}]*\}\}|\{[A-Za-z_0-9][^{}]*\}|\$[A-Za-z_]\w*|"
    # Filled in by their order.
    r"(?P<in_order>%[-+#0]*(?:\d+|\*)?(?:\.(?:\d+|\*))?(?:hh?|ll?|[zjtL])?[diouxXeEfFgGaAcsrp](?!\w)|\{(?:[:!][^{}]*)?\})"
)
STAND_IN = re.compile(r"XQ\d+")


def stand_ins(text: str) -> Iterator[str]:
    """Stand-ins that do not occur in a text."""
    number = 1
    while True:
        if f"XQ{number}" not in text:
            yield f"XQ{number}"
        number += 1


def put_back(text: str, names: dict[str, str]) -> str:
    """A text with its stand-ins replaced by the placeholders they stand for."""
    return STAND_IN.sub(lambda name: names.get(name[0], name[0]), text)


def translate_guarded(texts: list[str], translate: Callable[[list[str]], Iterable[str]]) -> tuple[list[str], int]:
    """Translate texts; a text whose translation lacks a placeholder or reorders them stays untranslated.

    The order matters for placeholders without a name or number.

    Returns:
        The translations, and how many texts stayed untranslated for that reason.
    """
    read = [_without_placeholders(text) for text in texts]
    results, kept = [], 0
    for text, (_, names, in_order), found in zip(texts, read, translate([each[0] for each in read]), strict=True):
        seen = [name for name in STAND_IN.findall(found) if name in names]
        if sorted(seen) == sorted(names) and [name for name in seen if name in in_order] == in_order:
            results.append(put_back(found, names))
        else:
            results.append(text)
            kept += 1
    return results, kept


def _without_placeholders(text: str) -> tuple[str, dict[str, str], list[str]]:
    """The text with stand-ins, the placeholder of each, and the stand-ins whose order matters."""
    free = stand_ins(text)
    names: dict[str, str] = {}
    in_order: list[str] = []

    def name_of(found: re.Match) -> str:
        name = next(free)
        names[name] = found[0]
        if found["in_order"]:
            in_order.append(name)
        return name

    return PLACEHOLDER.sub(name_of, text), names, in_order
