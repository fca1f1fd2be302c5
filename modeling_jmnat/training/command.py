"""Command line of a training: a preset gives the defaults, and options override its fields.

Importing this module loads neither PyTorch nor Transformers; parsing does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from ..utils.command_line import parse_arguments, print_help, read_ahead, wants_help
from .options import (
    FREE_MODEL_FIELDS,
    HALVES,
    WHOLE,
    InheritedOptions,
    MaskingOptions,
    ModelOptions,
    StudentOptions,
    check_half,
)
from .presets import Preset, load_preset, preset_names, read_preset

if TYPE_CHECKING:
    from .arguments import JMNatTrainingArguments

PRESET_HELP = f"Recipe: {', '.join(preset_names())}, or a .yaml file of your own."
# Options without effect beside another one. Given on the command line, they replace that of the preset.
PRECEDENCE = {"num_train_epochs": "max_steps", "per_device_train_batch_size": "max_tokens"}
USAGE = "%(prog)s --preset NAME --data DIR --output_dir DIR [--OPTION VALUE ...]"


@dataclass
class RunArguments:
    """What to train on and what to start from."""

    data: str = field(metadata={"help": "Folder that `jmnat prepare` wrote."})
    preset: str | None = field(
        default=None, metadata={"help": f"{PRESET_HELP} An option overrides the field of its name."}
    )
    system: str | None = field(
        default=None,
        metadata={
            "help": "Train another system of the paper instead of JM-NAT: nat_ft, nat_ir, nat_reg, fcl_nat, nat_dcrf "
            "or imitate_nat; --system NAME --help also lists its options."
        },
    )
    init_from: str | None = field(
        default=None,
        metadata={"help": "Start from the weights of this JM-NAT: a folder, or a name on the Hub (same tokenizer)."},
    )
    init_from_teacher: str | None = field(
        default=None,
        metadata={
            "help": "Copy the weights that fit from this autoregressive model (of `jmnat train-teacher`; same "
            "tokenizer): embeddings, encoder, decoder self- and cross-attention, feed-forward. The best start for "
            "short runs."
        },
    )
    freeze: str | None = field(
        default=None,
        metadata={
            "help": "encoder or decoder: train neither this half nor the embeddings that both halves share; network: "
            "train only the CRF (see --preset crf)."
        },
    )
    restart: str | None = field(
        default=None,
        metadata={"help": "encoder or decoder: with --init_from, start this half from random weights instead."},
    )

    def __post_init__(self):
        if self.init_from is not None and self.init_from_teacher is not None:
            raise ValueError("init_from and init_from_teacher both give initial weights: set only one of them")
        check_half("freeze", self.freeze, (*HALVES, WHOLE))
        check_half("restart", self.restart)
        if self.restart is not None and self.init_from is None:
            raise ValueError(f"restart={self.restart} needs init_from: without it, that half is random anyway")
        if self.freeze == WHOLE and (self.init_from is None or self.restart is not None):
            raise ValueError(f"freeze={WHOLE} needs init_from without restart: a random network would stay random")


@dataclass
class TrainingCommand:
    """A command to train a JM-NAT. `model` holds fields of `ModelOptions`, `masking` of `MaskingOptions`."""

    run: RunArguments
    model: dict[str, Any]
    masking: dict[str, Any]
    training: "JMNatTrainingArguments"


def parse_command(
    argv: Sequence[str] | None,
    description: str,
    run_class: type[RunArguments] = RunArguments,
    model_class: type[ModelOptions] = ModelOptions,
    settings: Mapping[str, Any] | None = None,
) -> TrainingCommand:
    """Parse the command line over the defaults of its `--preset`; with `--init_from`, sizes are those of that model.

    Args:
        run_class, model_class: dataclasses with further options, for another system than JM-NAT.
        settings: values of options that define such a system; they override the preset's.

    Raises:
        ValueError: an unknown preset, a value out of range, or no output folder.
    """
    given = read_ahead(argv, "preset", "init_from", "decoder_input")
    preset = preset_for(argv, given.preset)
    defaults = {**preset.model, **preset.masking, **preset.training, **(settings or {})}
    if wants_help(argv):
        groups = (run_class, InheritedOptions, StudentOptions, MaskingOptions, model_class)
        print_help(groups, description, defaults, usage=USAGE)
    from .arguments import JMNatTrainingArguments

    if given.init_from is not None:
        config = config_of_start(given.init_from)
        # The weights determine the sizes, whatever the preset says; the preset chooses the rest.
        names = [item.name for item in fields(ModelOptions)]
        free = FREE_MODEL_FIELDS - {"crf_rank"} if config.crf_rank else FREE_MODEL_FIELDS
        kept = [name for name in names if name not in free or name not in preset.model]
        defaults.update({name: getattr(config, name) for name in kept})
    if (given.decoder_input or defaults.get("decoder_input")) == "source_copy":
        defaults["eval_num_iterations"] = [1]
    groups = (run_class, model_class, MaskingOptions, JMNatTrainingArguments)
    run, model, masking, training = parse_over_defaults(groups, argv, description, defaults)
    for name, value in (("crf_rank", 32), ("crf_loss_weight", 1)):
        if run.freeze == WHOLE and not getattr(model, name):
            raise ValueError(f"freeze={WHOLE} leaves nothing to train with {name}=0: give --{name} {value}")
    passes = training.eval_num_iterations
    if model.decoder_input == "source_copy" and max(passes, default=1) > 1:
        raise ValueError(f"eval_num_iterations={passes} must be 1 with decoder_input=source_copy")
    return TrainingCommand(run, vars(model), vars(masking), training)


def config_of_start(name: str):
    """The `JMNatConfig` of a model to start from, given by its folder or its name on the Hub.

    Raises:
        ValueError: there is no saved model, or it is not a JM-NAT.
    """
    from ..configuration_jmnat import JMNatConfig
    from ..utils.hub_folders import fetch_folder

    folder = fetch_folder(name, ("config.json",))
    if not (folder / "config.json").is_file():
        raise ValueError(f"init_from {name} is not the folder of a saved model")
    kind = JMNatConfig.get_config_dict(folder)[0].get("model_type")
    if kind != JMNatConfig.model_type:
        raise ValueError(
            f"init_from {name} is a {kind} model but must be a JM-NAT: use --init_from_teacher to copy the weights "
            "that fit from an autoregressive model"
        )
    return JMNatConfig.from_pretrained(folder)


# For the commands of student and teacher -----------------------------------------------------------------------------


def preset_for(argv: Sequence[str] | None, name: str | None) -> Preset:
    """The preset of that name; an empty one for None. For `--help` it is not checked, which needs Transformers."""
    if name is None:
        return Preset("none")
    return read_preset(name) if wants_help(argv) else load_preset(name)


def parse_over_defaults(
    groups: Sequence[type], argv: Sequence[str] | None, description: str, defaults: Mapping[str, Any]
) -> tuple:
    """Parse the command line into objects of the dataclasses `groups`, of which the last has training arguments.

    Raises:
        ValueError: a value out of range, or no output folder.
    """
    given = read_ahead(argv, *(name for names in PRECEDENCE.items() for name in names), "resume_from_checkpoint")
    if (checkpoint := given.resume_from_checkpoint) is not None:
        raise ValueError(
            f"resume_from_checkpoint={checkpoint} is not an option here: repeat a command to resume it from its "
            "newest checkpoint, or start a new run from the weights of a model by --init_from"
        )
    hidden = [name for other, name in PRECEDENCE.items() if getattr(given, other) and not getattr(given, name)]
    defaults = {name: value for name, value in defaults.items() if name not in hidden}
    parsed = parse_arguments(argv, groups, description, defaults, usage=USAGE, allow_abbrev=False)
    if parsed[-1].output_dir in (None, "trainer_output"):
        raise ValueError("output_dir is missing: give --output_dir DIR, the folder of this run")
    return parsed
