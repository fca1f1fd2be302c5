"""Turn parallel text files, or a data set of the Hugging Face Hub, into what train_jmnat.py reads: cleaned pairs, one
tokenizer for both languages, and the ids. The last line of output counts the pairs read, dropped (and why) and kept.

    python run_scripts/prepare_data.py --recipe iwslt14_de_en --output_dir runs/data/iwslt14   (the paper's data sets)
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import datasets
from transformers import HfArgumentParser

from ..data.preparation import PreparationArguments, prepare
from ..experiments.paper_data import RECIPES, Recipe
from ..utils.command_line import command


@dataclass
class RecipeArguments:
    """A data set of the paper; each of its settings can be overridden by the option of that name."""

    recipe: str | None = field(
        default=None,
        metadata={"help": "; ".join(f"{name}: {recipe.title}" for name, recipe in RECIPES.items()) + "."},
    )


def parse_preparation(argv: Sequence[str] | None, description: str) -> tuple[PreparationArguments, Recipe | None]:
    """Read the options of this command; what is not given is as the `--recipe` says, if there is one.

    Raises:
        ValueError: an unknown recipe, or options that do not fit together.
    """
    parser = HfArgumentParser((RecipeArguments, PreparationArguments), description=description, allow_abbrev=False)
    first = HfArgumentParser(RecipeArguments, add_help=False, allow_abbrev=False)
    chosen, *_ = first.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)
    recipe = None
    if chosen.recipe is not None:
        if chosen.recipe not in RECIPES:
            raise ValueError(f"recipe={chosen.recipe!r} is not one of {', '.join(RECIPES)}")
        recipe = RECIPES[chosen.recipe]
        parser.set_defaults(**recipe.preparation)
    _, preparation = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    return preparation, recipe


@command
def main(argv=None):
    arguments, recipe = parse_preparation(argv, __doc__)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    result = prepare(arguments)
    if recipe is not None:
        print(recipe.describe().replace("DIR", arguments.output_dir), file=sys.stderr)
    print(json.dumps(result))
