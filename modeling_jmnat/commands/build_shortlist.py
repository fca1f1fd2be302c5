"""Write a lexical shortlist from the training data: with it, decoding projects onto likely target tokens alone."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from ..data.preparation import load_prepared
from ..inference.shortlist import build_shortlist
from ..teacher.model import tokenizer_digest
from ..utils.command_line import command


@dataclass
class ShortlistArguments:
    """Which data to count, and where to write."""

    data: str = field(metadata={"help": "Folder that prepare_data.py wrote: its training pairs are counted."})
    output: str = field(metadata={"help": "Folder for shortlist.safetensors, such as that of the model."})
    per_token: int = field(default=50, metadata={"help": "Target tokens for each source token."})
    frequent: int = field(default=200, metadata={"help": "Most frequent target tokens, for every source."})


@command
def main(argv=None):
    (arguments,) = HfArgumentParser(ShortlistArguments, description=__doc__).parse_args_into_dataclasses(argv)
    splits, tokenizer = load_prepared(arguments.data)
    columns = splits["train"].with_format("numpy")
    pairs = list(zip(columns["input_ids"], columns["labels"], strict=True))
    seen = set().union(*(source.tolist() for source, _ in pairs))
    shortlist = build_shortlist(pairs, len(tokenizer), arguments.per_token, arguments.frequent)
    shortlist.digest = tokenizer_digest(tokenizer)
    Path(arguments.output).mkdir(parents=True, exist_ok=True)
    path = shortlist.save(arguments.output)
    sizes = [
        shortlist.ids(columns_of).numel() for columns_of in splits["validation"].with_format("torch")["input_ids"]
    ]
    report = {
        "output": str(path),
        "vocabulary": len(tokenizer),
        "source_tokens_without_row": int((shortlist.table[list(seen)] < 0).all(dim=1).sum()),
        "mean_shortlist": round(sum(sizes) / len(sizes), 1) if sizes else None,
    }
    print(json.dumps(report))
