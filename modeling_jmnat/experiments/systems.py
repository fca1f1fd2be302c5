"""The experiments, and the systems that they compare: the training options that define each, and how it is decoded."""

from dataclasses import dataclass, field

from ..baselines import BASIC_NAT

# Tables and figures of the paper, as `reproduce --suite` calls them.
SUITES = {
    "main": "teacher, distillation and JM-NAT: the shortest way to a good model",
    "table1": "more encoder or decoder layers for the basic NAT",
    "table2": "teacher, CM-NAT and JM-NAT at k = 1, 4, 10, autoregressive baselines of equal text and updates, weak "
    "teacher, reranking, tuned decoding, latency, the paper's other systems; the only suite that reads the test set",
    "table3": "repeated words of JM-NAT, CM-NAT, the basic NAT and the paper's other systems",
    "table4": "one training for each part left out, added or changed",
    "figure1": "basic NAT: convergence with a frozen half, and noise on its states",
    "figure3": "noise on the source: CM-NAT beside JM-NAT, the teacher and the paper's other systems",
    "case_study": "sentences with the canvas of every pass, of the same systems",
}
# Training options that turn a preset into another system. JM-NAT is the preset itself.
CM_NAT = {
    "target_mask": "random",
    "mask_token_prob": 1.0,
    "random_token_prob": 0.0,
    "source_mask_ratio": 0.0,
    "ngram_loss_weight": 0.0,
}
# Decoding options of a system; all others keep their defaults.
INDEPENDENT_REMASKING = {"remask_adjacent": False}
# The two ways to re-mask; the name is that of a result whose way is not the system's own.
REMASKING = {"adjacent": {"remask_adjacent": True}, "independent": INDEPENDENT_REMASKING}


@dataclass(frozen=True)
class Student:
    """A non-autoregressive system: how it is trained and decoded, and its name in the tables.

    Args:
        name: folder name.
        label: row of the table.
        settings: training options that differ from the preset.
        data: "distilled", "weak_distilled", "raw", or "both" (distilled and raw together, equal updates).
        decoding: options of `generate`.
        more_layers: layers added to the preset's, by the name of the option.
        more_steps: updates, as a multiple of those of the other students.
        from_teacher: start with the teacher's weights, unless the run turns that off for all students.
        start: name of the student whose weights this one starts with instead, those of the same seed.
        guide: the model that such a system learns from: "same" (the teacher that it starts with) or "backward".
        passes: numbers of decoder passes to score, if not the usual ones.
        reranked: numbers of candidates for further evaluations, in which the teacher chooses one.
    """

    name: str
    label: str
    settings: dict = field(default_factory=dict)
    data: str = "distilled"
    decoding: dict = field(default_factory=dict)
    more_layers: dict[str, int] = field(default_factory=dict)
    more_steps: float = 1.0
    from_teacher: bool = True
    start: str | None = None
    guide: str | None = None
    passes: tuple[int, ...] = ()
    reranked: tuple[int, ...] = ()

    @property
    def one_pass(self) -> bool:
        return self.settings.get("decoder_input") == "source_copy"


def remasking_of(student: Student) -> str:
    """The name in `REMASKING` of a student's own decoding; the default is the paper's."""
    return "adjacent" if student.decoding.get("remask_adjacent", True) else "independent"


@dataclass(frozen=True)
class Autoregressive:
    """A left-to-right baseline, trained from random weights on the text of the students.

    It is trained for the updates of a student and of the teacher that the student started from together, with as many
    target tokens per update as the student.

    Args:
        name, label, data: see `Student`.
        layers: numbers of layers that replace the preset's.
    """

    name: str
    label: str
    data: str = "both"
    layers: dict[str, int] = field(default_factory=dict)


JM = Student("jm", "JM-NAT")
CM = Student("cm", "CM-NAT", CM_NAT, decoding=INDEPENDENT_REMASKING)
NAT = Student("nat", "basic NAT (section 3)", BASIC_NAT)
# The paper's other systems (the room `baselines`), decoded and reranked as in their own papers.
OTHERS = (
    Student(
        "nat_ft",
        "NAT-FT",
        BASIC_NAT | {"system": "nat_ft"},
        decoding={"num_length_candidates": 1},  # the most probable fertilities
        guide="same",
        reranked=(10, 100),
    ),
    Student("nat_ir", "NAT-IR", {"system": "nat_ir"}, passes=(1, 5, 10)),
    Student("nat_reg", "NAT-Reg", BASIC_NAT | {"system": "nat_reg"}, guide="backward", reranked=(9,)),
    Student("fcl_nat", "FCL-NAT", BASIC_NAT | {"system": "fcl_nat"}, reranked=(9,)),
    Student("nat_dcrf", "NAT-DCRF", BASIC_NAT | {"system": "nat_dcrf"}, decoding={"crf_beam": 64}, reranked=(9,)),
    Student("imitate_nat", "Imitate-NAT", BASIC_NAT | {"system": "imitate_nat"}, guide="same", reranked=(7,)),
)
WEAK_STUDENTS = (
    Student("jm_weak", "JM-NAT, weak teacher", data="weak_distilled"),
    Student("cm_weak", "CM-NAT, weak teacher", CM_NAT, data="weak_distilled", decoding=INDEPENDENT_REMASKING),
)


def cm_with(name: str, label: str, settings: dict, **fields) -> Student:
    """A variant of CM-NAT, decoded as CM-NAT is."""
    return Student(f"cm_{name}", f"CM-NAT, {label}", CM_NAT | settings, decoding=INDEPENDENT_REMASKING, **fields)


def jm_with(name: str, label: str, settings: dict, **fields) -> Student:
    return Student(f"jm_{name}", f"JM-NAT, {label}", settings, **fields)


FULL_WEIGHT = {"encoder_loss_weight": 1.0}
JM_BOTH = jm_with("both", "distilled and raw text", {}, data="both")
CM_BOTH = cm_with("both", "distilled and raw text", {}, data="both")
RAW = Student("raw", "JM-NAT, raw instead of distilled text", data="raw")
JM_BOTH_FULL_WEIGHT = jm_with("both_encoder_weight_1", "distilled and raw text, a1 = 1", FULL_WEIGHT, data="both")
# CM-NAT with only the source side of JM-NAT: its gain comes from masking the source, the rest from masking the target.
CM_BOTH_ENCODER_MASK = cm_with(
    "both_encoder_mask",
    "encoder mask and L_enc with a1 = 1, distilled and raw text",
    {"source_mask_ratio": 0.1} | FULL_WEIGHT,
    data="both",
)
# The main rows of table 2, and those of them whose difference is tested for significance.
MAIN_STUDENTS = (JM_BOTH_FULL_WEIGHT, CM_BOTH, CM_BOTH_ENCODER_MASK, JM_BOTH, JM, CM)
COMPARISONS = (
    (JM_BOTH_FULL_WEIGHT, CM_BOTH),
    (JM_BOTH_FULL_WEIGHT, CM_BOTH_ENCODER_MASK),
    (CM_BOTH_ENCODER_MASK, CM_BOTH),
    (JM_BOTH_FULL_WEIGHT, RAW),
    (JM_BOTH, CM_BOTH),
    (JM, CM),
)
AUTOREGRESSIVE = (
    Autoregressive("ar_both", "autoregressive, distilled and raw text"),
    Autoregressive("ar_distilled", "autoregressive, distilled text", data="distilled"),
    Autoregressive(
        "ar_both_6_1",
        "autoregressive, 6 encoder layers and 1 decoder layer, distilled and raw text",
        layers={"encoder_layers": 6, "decoder_layers": 1},
    ),
    Autoregressive(
        "ar_both_10_2",
        "autoregressive, 10 encoder and 2 decoder layers, distilled and raw text",
        layers={"encoder_layers": 10, "decoder_layers": 2},
    ),
)

NGRAMS = {"ngram_loss_weight": 0.1}
OTHER_DROPOUT = {"dropout": 0.2}
GLANCING = {"full_mask_ratio": 0.2, "glancing_ratio": 0.5}
# The rows of table 4, the most informative ones first: a run may end before the last.
ADDITIONS = (
    jm_with("glancing", "20 % of the targets fully masked, with glancing (not in the paper)", GLANCING),
    cm_with("glancing", "20 % of the targets fully masked, with glancing (not in the paper)", GLANCING),
    JM_BOTH,
    CM_BOTH,
    JM_BOTH_FULL_WEIGHT,
    cm_with("encoder_mask", "encoder mask and L_enc", {"source_mask_ratio": 0.1}),
    cm_with("ngram_loss", "L_gram with a2 = 0.1", NGRAMS),
    cm_with("consecutive", "consecutive masks", {"target_mask": "consecutive"}),
    cm_with("80_10_10", "80/10/10", {"mask_token_prob": 0.8, "random_token_prob": 0.1}),
    cm_with(
        "encoder_mask_ngram_loss", "encoder mask, L_enc, L_gram with a2 = 0.1", {"source_mask_ratio": 0.1} | NGRAMS
    ),
    cm_with("correction", "30 % of the visible tokens corrected (not in the paper)", {"correction_ratio": 0.3}),
    jm_with("correction", "30 % of the visible tokens corrected (not in the paper)", {"correction_ratio": 0.3}),
    jm_with("random_ngram_loss", "random masks, a2 = 0.1", {"target_mask": "random"} | NGRAMS),
    jm_with("dropout_0.2", "dropout 0.2", OTHER_DROPOUT),
    cm_with("dropout_0.2", "dropout 0.2", OTHER_DROPOUT),
    jm_with("long", "twice the updates", {}, more_steps=2),
    cm_with("long", "twice the updates", {}, more_steps=2),
)
ABLATIONS = (
    Student("no_encoder_loss", "JM-NAT, without L_enc", {"encoder_loss_weight": 0.0}),
    Student("encoder_weight_0.1", "JM-NAT, a1 = 0.1", {"encoder_loss_weight": 0.1}),
    Student("encoder_weight_1", "JM-NAT, a1 = 1", {"encoder_loss_weight": 1.0}),
    Student("no_encoder_mask", "JM-NAT, without encoder mask and L_enc", {"source_mask_ratio": 0.0}),
    Student("no_ngram_loss", "JM-NAT, without L_gram", {"ngram_loss_weight": 0.0}),
    Student("random_mask", "JM-NAT, without consecutive mask", {"target_mask": "random"}),
    Student("masks_only", "JM-NAT, 100/0/0 instead of 80/10/10", {"mask_token_prob": 1.0, "random_token_prob": 0.0}),
    Student("ngram_weight_0.1", "JM-NAT, a2 = 0.1", NGRAMS),
    Student("ngram_weight_0.5", "JM-NAT, a2 = 0.5", {"ngram_loss_weight": 0.5}),
    Student("ngram_gold", "JM-NAT, n-grams at their own place (Eq. 6)", {"ngram_alignment": "gold"}),
    Student(
        "ngram_gold_weight_0.1",
        "JM-NAT, n-grams at their own place (Eq. 6), a2 = 0.1",
        {"ngram_alignment": "gold"} | NGRAMS,
    ),
    Student("ngram_size_1", "JM-NAT, n = 1", {"ngram_size": 1}),
    Student("ngram_size_3", "JM-NAT, n = 3", {"ngram_size": 3}),
    Student("source_mask_0.05", "JM-NAT, 5 % of the source masked", {"source_mask_ratio": 0.05}),
    Student("source_mask_0.2", "JM-NAT, 20 % of the source masked", {"source_mask_ratio": 0.2}),
    Student("full_mask_0.2", "JM-NAT, 20 % of the targets fully masked (not in the paper)", {"full_mask_ratio": 0.2}),
    RAW,
    cm_with("raw", "raw instead of distilled text", {}, data="raw"),
    Student("from_scratch", "JM-NAT, without the teacher's weights", from_teacher=False),
)


def recipe(name: str, label: str, settings: dict, student: Student = JM_BOTH_FULL_WEIGHT) -> Student:
    """The best JM-NAT of table 2, or `student`, with a switch beyond the paper."""
    return Student(
        f"jm_recipe_{name}", f"{student.label}, {label}", {**student.settings, **settings}, data=student.data
    )


# The same network; an eighth of the updates of preset multi30k_tiny.
JM_CRF = Student(
    "jm_recipe_crf",
    f"{JM_BOTH_FULL_WEIGHT.label}, and a CRF trained behind it",
    {"preset": "crf", "freeze": "network"},
    data=JM_BOTH_FULL_WEIGHT.data,
    more_steps=0.375,
    start=JM_BOTH_FULL_WEIGHT.name,
)
ADAPTIVE_SOURCE = {"source_mask_ratio": 0.2, "source_mask_ratio_full": 0.0}
SECOND_MASK = {"second_mask_ratio": 0.5}
CRF = {"crf_rank": 32}
CRF_FULL_MASK = CRF | {"full_mask_ratio": 0.5}
# Compared with that JM-NAT itself, so that the switches that gain something can be added up.
RECIPES = (
    recipe("full_mask_0.2", "20 % of the targets fully masked", {"full_mask_ratio": 0.2}),
    recipe("second_mask", "half of the targets masked a second time", SECOND_MASK),
    recipe(
        "adaptive_source", "20 % to none of the source masked, the less the more of the target is", ADAPTIVE_SOURCE
    ),
    recipe("amom", "adaptive source masks and second masks", ADAPTIVE_SOURCE | SECOND_MASK),
    recipe("glancing", "20 % of the targets fully masked, with glancing", GLANCING),
    recipe("glancing_annealed", "the same, glancing from 0.5 to 0.3", GLANCING | {"glancing_ratio_end": 0.3}),
    recipe("correction", "30 % of the visible tokens corrected", {"correction_ratio": 0.3}),
    recipe("encoder_weight_rising", "rising from 0.01", {"encoder_loss_weight_start": 0.01}),
    recipe(
        "encoder_weight_falling",
        "falling to 0.01",
        {"encoder_loss_weight_start": 1.0, "encoder_loss_weight": 0.01},
    ),
    recipe("length_smoothing", "length classes smoothed with deviation 1", {"length_smoothing": 1.0}),
    recipe("length_noise", "30 % of the targets with a second </s>", {"length_noise": 0.3}),
    recipe("length_weight_1", "a3 = 1", {"length_loss_weight": 1.0}),
    recipe("crf_joint", "and a CRF from the first update on", CRF),
    recipe("crf_joint_full_mask", "the same, half of the targets fully masked", CRF_FULL_MASK),
    recipe(
        "crf_joint_full_mask_distilled",
        "a1 = 1, a CRF from the first update on, half of the targets fully masked",
        CRF_FULL_MASK | FULL_WEIGHT,
        JM,
    ),
    JM_CRF,
)
# Further decodings of those whose training has a setting: its name, those of the decoding, and its options.
OWN_DECODINGS = (
    ("correction_ratio", "update_all", "every token predicted anew in each pass", {"update_all": True}),
    ("length_noise", "longer", "lengths one longer than predicted", {"length_shift": 1}),
)
# Other ways to decode the first JM-NAT: name, label and options.
DECODINGS = (
    ("early_stop", "early stop", {"early_stop": True}),
    ("cosine", "cosine schedule", {"remask_schedule": "cosine"}),
    ("confidence_0.9", "adaptive passes, threshold 0.9", {"confidence_threshold": 0.9}),
    ("prune_2", "length candidates pruned after pass 2", {"prune_candidates": 2}),
    ("candidates_8", "8 length candidates", {"num_length_candidates": 8}),
)

# Table 1 and figure 1: basic NATs. They start from random weights, because no teacher has layers that fit.
NAT_SCRATCH = Student("nat_scratch", "basic NAT", BASIC_NAT, from_teacher=False)
DEEPER_NATS = tuple(
    Student(
        f"nat_{half}_{layers}",
        f"+{layers} {half} layers",
        BASIC_NAT,
        more_layers={f"{half}_layers": layers},
        from_teacher=False,
    )
    for half in ("encoder", "decoder")
    for layers in (5, 10, 15)
)
FROZEN_NATS = tuple(
    Student(
        f"nat_frozen_{frozen}",
        f"trained {frozen} frozen, {other} from random weights",
        BASIC_NAT | {"freeze": frozen, "restart": other},
        from_teacher=False,
        start=NAT_SCRATCH.name,
    )
    for frozen, other in (("encoder", "decoder"), ("decoder", "encoder"))
)
STATE_NOISE_LEVELS = (0.0, 0.5, 1.0, 2.0, 4.0)
WORD_NOISE_LEVELS = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1)
