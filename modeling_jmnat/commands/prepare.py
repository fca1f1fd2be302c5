"""Turn parallel text files, or a data set of the Hugging Face Hub, into data for `jmnat train`: cleaned pairs, a
tokenizer for both languages, and ids. The last line of output counts the pairs read, dropped (and why) and kept.

    jmnat prepare --recipe iwslt14_de_en --output_dir runs/data/iwslt14   (the paper's data sets)
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..data.options import PreparationArguments
from ..experiments.paper_data import RECIPES, Recipe
from ..utils.command_line import command, parse_arguments, read_ahead


@dataclass
class RecipeArguments:
    """A data set of the paper, whose settings can be overridden by the options of the same name."""

    recipe: str | None = field(
        default=None,
        metadata={"help": "; ".join(f"{name}: {recipe.title}" for name, recipe in RECIPES.items()) + "."},
    )


def parse_preparation(argv: Sequence[str] | None, description: str) -> tuple[PreparationArguments, Recipe | None]:
    """Parse the options of this command over the defaults of its `--recipe`, if one is given.

    Raises:
        ValueError: an unknown recipe, or options that do not fit together.
    """
    name = read_ahead(argv, "recipe").recipe
    if name is not None and name not in RECIPES:
        raise ValueError(f"recipe={name!r} is not one of {', '.join(RECIPES)}")
    recipe = None if name is None else RECIPES[name]
    defaults = {} if recipe is None else recipe.preparation
    groups = (RecipeArguments, PreparationArguments)
    _, preparation = parse_arguments(argv, groups, description, defaults, allow_abbrev=False)
    return preparation, recipe


@command
def main(argv=None):
    arguments, recipe = parse_preparation(argv, __doc__)
    import datasets

    from ..data.preparation import check_reused_tokenizer, prepare

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    if arguments.tokenizer is not None:
        # Only what was typed: defaults, and the values of a recipe, are for new tokenizers.
        typed = vars(read_ahead(argv, "vocab_size", "unicode_form"))
        given = {name: getattr(arguments, name) for name, word in typed.items() if word is not None}
        if given:
            check_reused_tokenizer(arguments.tokenizer, **given)
    result = prepare(arguments)
    if recipe is not None:
        print(recipe.describe().replace("DIR", arguments.output_dir), file=sys.stderr)
    print(json.dumps(result))
