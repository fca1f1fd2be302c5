"""Build a folder that loads with Transformers alone, with a card made from measured results; push it to the Hub."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from ..utils.command_line import command, parse_arguments, say


@dataclass
class PublishArguments:
    """Which model to publish, how, and where."""

    model: str = field(
        metadata={"help": "A trained JM-NAT model: the folder of a training, a published one, or a name on the Hub."}
    )
    output: str = field(
        metadata={
            "help": "Folder to build or update, where files of the same name are replaced; it may be --model itself."
        }
    )
    card: str | None = field(
        default=None,
        metadata={
            "help": "YAML file with the facts of the model card and the result files of `jmnat evaluate` from which "
            "it takes its figures, such as hub_card/de-en.yaml. Default: no card is written, and one that is in "
            "--output stays."
        },
    )
    fp16: bool = field(
        default=False,
        metadata={"help": "Store weights in half precision, which halves the file; they are loaded as float32."},
    )
    onnx: bool = field(
        default=False,
        metadata={
            "help": "Also write ONNX graphs, float32 and int8, into the folder onnx. Without it, graphs of an earlier "
            "build are removed."
        },
    )
    max_shard_size: str = field(default="5GB", metadata={"help": "Split weights into files of at most this size."})
    push: str | None = field(
        default=None,
        metadata={
            "help": "Push the model in the folder to this repository of the Hub, such as you/jmnat-de-en, which is "
            "created if needed. Needs a token: 'hf auth login', or HF_TOKEN."
        },
    )
    private: bool = field(
        default=False,
        metadata={"help": "Make the repository of --push private when it is created; refuse one that is public."},
    )

    def __post_init__(self):
        if self.private and self.push is None:
            raise ValueError("private=True needs push, the repository to make private: give it, or leave private out")


@command
def main(argv=None):
    (arguments,) = parse_arguments(argv, PublishArguments, __doc__)
    from transformers.utils import logging

    from ..hub.model_card import read_facts, write_card
    from ..hub.publishing import (
        REPLACED_FILES,
        check_no_links,
        keeps_foreign_card,
        load_for_publishing,
        published_files,
        push,
        save_for_everyone,
        write_endpoint_files,
    )
    from ..utils.atomic_files import replace_files
    from ..utils.locks import folder_lock

    logging.disable_progress_bar()
    languages = read_facts(arguments.card).languages if arguments.card else None
    check_no_links(arguments.output)
    model, tokenizer = load_for_publishing(arguments.model)
    output = Path(arguments.output)
    with folder_lock(output, "output"), replace_files(output, REPLACED_FILES) as folder:
        save_for_everyone(
            model, tokenizer, folder, languages, arguments.fp16, arguments.max_shard_size, arguments.onnx
        )
        write_endpoint_files(folder, output)
        if arguments.card:
            write_card(arguments.card, folder, arguments.push or str(output), model, tokenizer)
        foreign_card = keeps_foreign_card(folder, output)
    if foreign_card:
        say(f"warning: {output / 'README.md'} is the card of other weights and stays: give --card to write a new one")
    sizes = published_files(output)
    report = {"output": str(output), "megabytes": round(sum(sizes.values()) / 1e6, 2), "files": list(sizes)}
    if arguments.push:
        report["pushed_to"] = push(output, arguments.push, arguments.private)
    print(json.dumps(report))
