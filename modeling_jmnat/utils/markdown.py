"""Tables in Markdown."""

from collections.abc import Sequence


def markdown(header: Sequence[str], rows: Sequence[Sequence[str] | None]) -> str:
    """A table, without the rows that are None."""
    if not any(row is not None for row in rows):
        return "(no result yet)\n"
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows if row is not None]) + "\n"
