"""Update the tables and pictures in folders of results, or add new results to such a folder.

    jmnat tables --results hub_card/results/noise
    jmnat tables --results hub_card/results/noise --add runs/figure3 --run multi30k_tiny/updates_3200 --only 'drop|rep'

A folder of results has results.jsonl, with a row for each system, seed, variant, split and setting, and the
translations that were scored. Comments in its Markdown files declare their tables and pictures.
"""

import json
import re
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ..utils.command_line import command, parse_arguments
from ..utils.locks import folder_lock


@dataclass
class TablesArguments:
    """Which folders, and which results to add."""

    results: list[str] = field(metadata={"help": "Folders of results, such as hub_card/results/noise."})
    add: list[str] | None = field(
        default=None,
        metadata={
            "help": "JSON files of `jmnat evaluate` or `jmnat tune`, or output folders of `jmnat reproduce` or a "
            "benchmark. Their rows replace those of the same run, system, seed, variant, split and setting."
        },
    )
    run: str | None = field(
        default=None,
        metadata={"help": "Name of the run of these results, such as multi30k_tiny/teacher_3600/updates_9600."},
    )
    only: str = field(
        default="",
        metadata={"help": "Regular expression: add only systems whose names match, such as jm-1.independent."},
    )
    with_translations: bool = field(
        default=True,
        metadata={"help": "Copy the translations that were scored; False if a licence forbids it."},
    )

    def __post_init__(self):
        if self.add and (self.run is None or len(self.results) != 1):
            raise ValueError("--add needs --run, the name of the run, and one folder in --results")
        try:
            re.compile(self.only)
        except re.error as error:
            raise ValueError(f"only={self.only!r} must be a regular expression: {error}") from None


@command
def main(argv=None):
    (arguments,) = parse_arguments(argv, TablesArguments, __doc__)
    from ..experiments.documents import write_document
    from ..experiments.stored_results import add_results

    folders = [Path(folder) for folder in arguments.results]
    figures = {}
    with ExitStack() as locks:
        for folder in dict.fromkeys(folder.resolve() for folder in folders):
            locks.enter_context(folder_lock(folder, "results"))
        if arguments.add:
            sources = [Path(source) for source in arguments.add]
            new, replaced = add_results(*folders, sources, arguments.run, arguments.only, arguments.with_translations)
            figures = {"new": new, "replaced": replaced}
        documents = [path for folder in folders for path in sorted(folder.glob("*.md"))]
        changed = [str(path) for path in documents if write_document(path)]
    print(json.dumps({**figures, "documents": len(documents), "changed": changed}))
