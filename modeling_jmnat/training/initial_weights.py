"""The initial weights of a training: random, another JM-NAT's, or an autoregressive teacher's where they fit."""

import sys
from dataclasses import dataclass, field, fields

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..configuration_jmnat import JMNatConfig
from ..inference.loading import (
    check_vocabulary,
    is_jmnat_itself,
    load_teacher,
    load_teacher_tokenizer,
    load_translator,
)
from ..modeling_jmnat import JMNatForConditionalGeneration
from ..tokenization_jmnat import JMNatTokenizer, set_repeatable_tokens
from ..utils.fingerprints import shown, tokenizer_fingerprint
from ..utils.finite import check_finite
from .command import RunArguments
from .halves import freeze_half, freeze_network, restart_half
from .options import FREE_MODEL_FIELDS, WHOLE, ModelOptions

# Fields in which the teacher's configuration, where it has them, must agree for its weights to compute the same.
SAME_COMPUTATION = ("activation_function", "scale_embedding", "encoder_attention_heads", "decoder_attention_heads")
VOCABULARY_TABLES = (
    *("model.shared.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"),
    *("lm_head.weight", "lm_head.bias"),
)
COUNT_FROM_0 = ("marian", "pegasus")  # model types whose sinusoids begin at position 0


def initial_model(
    run: RunArguments,
    model_fields: dict,
    tokenizer: PreTrainedTokenizerBase,
    model_class: type[JMNatForConditionalGeneration] = JMNatForConditionalGeneration,
) -> JMNatForConditionalGeneration:
    """The model to train, in float32: new, with another model's weights, or with the fitting weights of a teacher.

    Args:
        model_fields: all fields of `ModelOptions`, and further ones of the configuration of `model_class`.

    Raises:
        ValueError: the model to start from is of another kind, or its tokenizer or sizes differ from this run's.
    """
    teacher = None
    if run.init_from_teacher is not None:
        check_same_tokenizer(load_teacher_tokenizer(run.init_from_teacher), tokenizer, run.init_from_teacher)
        teacher = load_teacher(run.init_from_teacher)[0]
    if run.init_from is not None:
        model = trained_model(run.init_from, model_fields, tokenizer)
    else:
        fields_of_teacher = {} if teacher is None else tables_of(teacher)
        config_class: type[JMNatConfig] = model_class.config_class
        config = config_class.for_tokenizer(tokenizer, **model_fields, **fields_of_teacher)
        model = model_class(config)
    if teacher is not None:
        copied = copy_teacher_weights(model, teacher)
        print(f"from the teacher {run.init_from_teacher}: {copied.describe()}", file=sys.stderr)
    check_vocabulary(model, tokenizer)
    set_repeatable_tokens(model, tokenizer)
    if run.restart is not None:
        restart_half(model, run.restart)
    if run.freeze == WHOLE:
        freeze_network(model)
    elif run.freeze is not None:
        freeze_half(model, run.freeze)
    return model


def trained_model(
    folder: str, model_fields: dict, tokenizer: PreTrainedTokenizerBase
) -> JMNatForConditionalGeneration:
    """A saved JM-NAT with the loss weights and dropout of this run, and with its CRF if the saved one has none."""
    has_crf = JMNatConfig.from_pretrained(folder).crf_rank > 0
    changes = {name: model_fields[name] for name in FREE_MODEL_FIELDS if not (has_crf and name == "crf_rank")}
    config = JMNatConfig.from_pretrained(folder, **changes)
    for item in fields(ModelOptions):
        if getattr(config, item.name) != model_fields[item.name]:
            raise ValueError(
                f"{item.name} is {getattr(config, item.name)} in {folder} and {model_fields[item.name]} here: leave "
                f"{item.name} out, because the weights fit only a model of their own sizes"
            )
    check_same_tokenizer(JMNatTokenizer.from_pretrained(folder), tokenizer, folder)
    # Passed as a config because from_pretrained would also put changes into the generation config.
    model = JMNatForConditionalGeneration.from_pretrained(folder, config=config, dtype=torch.float32)
    check_finite(model, folder)
    return model


def check_same_tokenizer(theirs: PreTrainedTokenizerBase, ours: PreTrainedTokenizerBase, folder: str) -> None:
    """ValueError for weights that were trained on other token ids, where they would silently be noise."""
    fingerprints = [tokenizer_fingerprint(tokenizer) for tokenizer in (theirs, ours)]
    if fingerprints[0] != fingerprints[1]:
        if not isinstance(theirs, JMNatTokenizer):
            raise ValueError(
                f"{folder} has a {type(theirs).__name__}, which is not the data's tokenizer: make an initial model "
                f"with `jmnat init --from {folder} --output DIR`, prepare the data with --tokenizer DIR and train "
                "with --init_from DIR"
            )
        raise ValueError(
            f"the tokenizer of {folder} (hash {shown(fingerprints[0])}) is not that of the data (hash "
            f"{shown(fingerprints[1])}): prepare the data with --tokenizer {folder}"
        )


@dataclass
class CopiedWeights:
    """Names of the student's tensors that were copied, and of those that were not, with the reason."""

    copied: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    num_copied: int = 0
    num_parameters: int = 0

    def describe(self) -> str:
        """What was copied, and by reason what was not; modules of the same kind in different layers are named once."""
        kinds: dict[str, dict[str, None]] = {}
        for name, reason in self.left.items():
            module = ".".join("*" if part.isdigit() else part for part in name.split(".")[:-1])
            kinds.setdefault(reason, {})[module] = None
        share = 100 * self.num_copied / self.num_parameters
        sentences = [f"copied {len(self.copied)} tensors, {share:.1f} % of the parameters"]
        return ". ".join(sentences + [f"{reason.capitalize()}: {', '.join(left)}" for reason, left in kinds.items()])


@torch.no_grad()
def copy_teacher_weights(
    student: JMNatForConditionalGeneration, teacher: PreTrainedModel, shared_tokens: int | None = None
) -> CopiedWeights:
    """Copy embeddings, encoder, decoder self- and cross-attention, feed-forward and layer norms where they fit.

    Both models have the same blocks under the same names. Positional attention, which the teacher lacks, gets a zero
    output projection, so that the student starts with the teacher's own layers. Layers are matched by their index;
    one model may have more of them than the other. The student takes over the teacher's `position_offset`: if all
    layers are copied and `[LEN]` is masked out, its encoder computes the teacher's states.

    Args:
        teacher: `MarianMTModel`, `M2M100ForConditionalGeneration` or another model with Bart's layer names.
        shared_tokens: ids below this are the same tokens in both models; the student's other embeddings start at
            their mean. None: all tokens are the same.

    Raises:
        ValueError: the vocabularies differ in size without `shared_tokens`, less than half of the weights fit, or the
            student would compute something else with the same weights (another activation function, number of heads,
            position of layer norms or numbering of positions, or one table of embeddings where the teacher has
            several).
    """
    if shared_tokens is None and teacher.config.vocab_size != student.config.vocab_size:
        raise ValueError(
            f"the teacher's vocabulary has {teacher.config.vocab_size} tokens and the student's "
            f"{student.config.vocab_size}: they must share one tokenizer"
        )
    check_same_layers(student.config, teacher)
    number_positions_alike(student, teacher)
    theirs = dict(teacher.named_parameters(remove_duplicate=False))  # a shared table under all its names
    if (bias := output_bias_of(teacher)) is not None:
        theirs["lm_head.bias"] = bias
    if shared_tokens is not None:
        for name in theirs.keys() & {*VOCABULARY_TABLES}:
            theirs[name] = rows_for(theirs[name], shared_tokens, student.config.vocab_size)
    report = CopiedWeights()
    for name, parameter in student.named_parameters():
        report.num_parameters += parameter.numel()
        source = theirs.get(name)
        if source is not None and source.shape == parameter.shape:
            parameter.copy_(source)
            report.copied.append(name)
            report.num_copied += parameter.numel()
        elif source is not None:
            report.left[name] = f"is {tuple(source.shape)} there and {tuple(parameter.shape)} here"
        else:
            report.left[name] = "not in the teacher"
    in_both = sum(parameter.numel() for name, parameter in student.named_parameters() if name in theirs)
    if report.num_copied == 0 or report.num_copied < 0.5 * in_both:
        raise ValueError(
            f"only {report.num_copied} of {report.num_parameters} parameters fit this teacher: choose its sizes "
            f"({report.describe()})"
        )
    for layer in student.get_decoder().layers:
        if layer.position_attn is not None:
            nn.init.zeros_(layer.position_attn.out_proj.weight)
            nn.init.zeros_(layer.position_attn.out_proj.bias)
    for name in report.left:
        if ".position_attn.out_proj." in name:
            report.left[name] = "set to zero"
    return report


@torch.no_grad()
def copy_into_teacher(teacher: PreTrainedModel, folder: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a new teacher the weights of a saved one, or those that it shares with a JM-NAT.

    Args:
        teacher: as `build_teacher` makes it.
        folder: the saved model, or its name on the Hub.
        tokenizer: of the data.

    Raises:
        ValueError: the saved model has another tokenizer or other sizes, or computes something else with them.
    """
    model, theirs = load_translator(folder, "cpu", "float32")
    check_same_tokenizer(theirs, tokenizer, folder)
    source = dict(model.named_parameters())
    learned = {name: weight for name, weight in teacher.named_parameters() if weight.requires_grad}  # not sinusoids
    there, here = ({"model_type": of.config.model_type} for of in (model, teacher))
    if is_jmnat_itself(model.config) or there == here:
        there, here = computation_of(model), computation_of(teacher)
        for name, weight in learned.items():
            there[name], here[name] = tuple(source[name].shape) if name in source else None, tuple(weight.shape)
    for name, value in here.items():
        if there[name] != value:
            raise ValueError(
                f"{name} is {there[name]} in init_from {folder} and {value} here: choose the preset and the numbers "
                "of layers that it was trained with"
            )
    for name, weight in learned.items():
        weight.copy_(source[name])


def computation_of(model: PreTrainedModel) -> dict:
    """What decides, beside its weights, what a model with Bart's layers computes."""
    names = ("d_model", "encoder_layers", "decoder_layers", *SAME_COMPUTATION)
    return {
        **{name: getattr(model.config, name, None) for name in names},
        "normalize_before": has_last_norm(model),
        "position_embedding_type": getattr(model.config, "position_embedding_type", "sinusoidal"),
        "position_offset": first_position(model),
        **tables_of(model),
    }


def rows_for(table: torch.Tensor, shared: int, size: int) -> torch.Tensor:
    """The first `shared` rows of a table (V, ..), followed by their mean up to `size` rows."""
    table = table[:shared]
    return torch.cat([table, table.mean(dim=0, keepdim=True).expand(size - shared, *table.shape[1:])])


def output_bias_of(teacher: PreTrainedModel) -> torch.Tensor | None:
    """Marian's bias (V,) of the output projection; None if it is zero everywhere."""
    bias = getattr(teacher, "final_logits_bias", None)
    return None if bias is None or not bias.any() else bias.flatten()


def tables_of(teacher: PreTrainedModel) -> dict[str, bool]:
    """The fields of a configuration that say which tables of the vocabulary a teacher, or a JM-NAT, has."""
    has_bias = getattr(teacher.config, "output_bias", output_bias_of(teacher) is not None)
    return {"output_bias": has_bias, "tie_word_embeddings": has_one_table(teacher)}


def has_one_table(teacher: PreTrainedModel) -> bool:
    """Whether encoder, decoder and output projection have the same embeddings."""
    tables = (teacher.get_encoder().embed_tokens, teacher.get_decoder().embed_tokens, teacher.get_output_embeddings())
    return all(torch.equal(tables[0].weight, table.weight) for table in tables[1:])


def check_same_layers(config: JMNatConfig, teacher: PreTrainedModel) -> None:
    """ValueError for a student whose layers would compute something else with the teacher's weights.

    The shapes of the weights do not show this.
    """
    theirs = {name: getattr(teacher.config, name, None) for name in SAME_COMPUTATION}
    theirs["normalize_before"] = has_last_norm(teacher)
    theirs["tie_word_embeddings"] = has_one_table(teacher)
    for name, value in theirs.items():
        if value is not None and value != getattr(config, name):
            raise ValueError(
                f"{name} is {value} in the teacher and {getattr(config, name)} here: set {name}={value}, for which "
                "its weights were trained"
            )


def number_positions_alike(student: JMNatForConditionalGeneration, teacher: PreTrainedModel) -> None:
    """Let a student with sinusoids number positions as its teacher does: Marian from 0, others as fairseq.

    Raises:
        ValueError: the student has a `position_offset` of its own.
    """
    if student.config.position_embedding_type != "sinusoidal":
        return
    offset = first_position(teacher)
    if student.config.position_offset not in (None, offset):
        raise ValueError(
            f"position_offset={student.config.position_offset} is not the teacher's, {offset}: leave position_offset "
            "out, because its weights fit no other positions"
        )
    if offset != student.get_encoder().position_offset:
        student.config.position_offset = offset


def first_position(model: PreTrainedModel) -> int:
    """The number of the first position of a model with sinusoids."""
    counted_from = 0 if model.config.model_type in COUNT_FROM_0 else model.config.pad_token_id + 1
    return getattr(model.get_encoder(), "position_offset", counted_from)


def has_last_norm(model: PreTrainedModel) -> bool:
    """Whether layer norms stand before each block, so that another one follows the last."""
    return getattr(model.get_encoder(), "layer_norm", None) is not None
