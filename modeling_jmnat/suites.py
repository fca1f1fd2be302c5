"""The paper's experiments as stages: what is trained with which settings, and decoded how."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .experiments import Stage
from .preparation import load_prepared
from .presets import load_preset

# Settings of train_jmnat.py that make a system out of a preset. JM-NAT is the preset itself.
CM_NAT = {
    "target_mask": "random",
    "mask_token_prob": 1.0,
    "random_token_prob": 0.0,
    "source_mask_ratio": 0.0,
    "ngram_loss_weight": 0.0,
}
BASIC_NAT = {"decoder_input": "source_copy", "target_mask": "all", "source_mask_ratio": 0.0, "ngram_loss_weight": 0.0}
# Decoding options of a system; every other option is the default.
INDEPENDENT_REMASKING = {"remask_adjacent": False}
WEAK_TEACHER_SHARE = 0.25  # of the teacher's updates


@dataclass(frozen=True)
class Student:
    """One training of a non-autoregressive model and how its name reads in a table.

    Args:
        name: folder name.
        label: row of the table.
        settings: options of train_jmnat.py beside the preset.
        data: "distilled", "weak_distilled" or "raw".
        seeds: one training for each.
        decoding: options of `generate`.
    """

    name: str
    label: str
    settings: dict = field(default_factory=dict)
    data: str = "distilled"
    seeds: int = 1
    decoding: dict = field(default_factory=dict)


JM = Student("jm", "JM-NAT")
CM = Student("cm", "CM-NAT", CM_NAT, decoding=INDEPENDENT_REMASKING)

MAIN_STUDENTS = (
    Student("jm", "JM-NAT", seeds=2),
    Student("cm", "CM-NAT", CM_NAT, seeds=2, decoding=INDEPENDENT_REMASKING),
)
WEAK_STUDENTS = (
    Student("jm_weak", "JM-NAT, weak teacher", data="weak_distilled"),
    Student("cm_weak", "CM-NAT, weak teacher", CM_NAT, data="weak_distilled", decoding=INDEPENDENT_REMASKING),
)
ABLATIONS = (
    Student("no_encoder_loss", "without L_enc", {"encoder_loss_weight": 0.0}),
    Student("no_encoder_mask", "without encoder mask and L_enc", {"source_mask_ratio": 0.0}),
    Student("no_ngram_loss", "without L_gram", {"ngram_loss_weight": 0.0}),
    Student("random_mask", "without consecutive mask", {"target_mask": "random"}),
    Student("ngram_size_1", "n = 1", {"ngram_size": 1}),
    Student("ngram_size_3", "n = 3", {"ngram_size": 3}),
    Student("ngram_weight_0.1", "a2 = 0.1", {"ngram_loss_weight": 0.1}),
    Student("ngram_weight_0.5", "a2 = 0.5", {"ngram_loss_weight": 0.5}),
    Student("masks_only", "100/0/0 instead of 80/10/10", {"mask_token_prob": 1.0, "random_token_prob": 0.0}),
    Student("source_mask_0.05", "5 % of the source masked", {"source_mask_ratio": 0.05}),
    Student("source_mask_0.2", "20 % of the source masked", {"source_mask_ratio": 0.2}),
    Student("full_mask_0.2", "20 % of the targets fully masked (ours)", {"full_mask_ratio": 0.2}),
    Student("raw", "raw instead of distilled text", data="raw"),
)
FROM_SCRATCH = Student("from_scratch", "without the teacher's weights")
NAT = Student("nat", "basic NAT (section 3)", BASIC_NAT)

# What else is tried at decoding with the first JM-NAT, as name, label and options.
DECODINGS = (
    ("independent", "tokens re-masked one by one", {"remask_adjacent": False}),
    ("early_stop", "early stop", {"early_stop": True}),
    ("cosine", "cosine schedule", {"remask_schedule": "cosine"}),
    ("confidence_0.9", "adaptive passes, threshold 0.9", {"confidence_threshold": 0.9}),
    ("prune_2", "length candidates pruned after pass 2", {"prune_candidates": 2}),
)

SUITES = {
    "main": "teacher, distillation and JM-NAT: the shortest way to a good model",
    "table2": "the paper's tables 2 and 3: teacher, CM-NAT and JM-NAT at k = 1, 4, 10, weak teacher, reranking",
    "table4": "the paper's table 4 and ours: one training for each part left out or changed",
}


@dataclass
class SuiteSettings:
    """Where a suite reads and writes, and what every training and evaluation of it gets.

    Args:
        preset: name or file for the training commands.
        data: folder that prepare_data.py wrote.
        output: folder of the whole run.
        scripts: folder of the commands.
        teacher_steps, student_steps: updates; None leaves them to the preset.
        training_options: further options of all trainings, such as {"bf16": True}.
        teacher_preset: for the teacher that translates the training set; None takes `preset`.
        from_teacher: students start with a teacher's weights (one of their own size).
        num_length_candidates: C.
    """

    preset: str
    data: Path
    output: Path
    scripts: Path
    teacher_steps: int | None = None
    student_steps: int | None = None
    training_options: dict = field(default_factory=dict)
    teacher_preset: str | None = None
    from_teacher: bool = True
    num_length_candidates: int = 4
    latency_sentences: int = 0

    @property
    def strong_teacher_steps(self) -> int:
        return self.teacher_steps or load_preset(self.preset).teacher["max_steps"]


def flags(options: dict) -> list[str]:
    """Options as command-line arguments."""
    return [part for name, value in options.items() for part in (f"--{name}", str(value))]


class SuiteBuilder:
    """Collects the stages of one or more suites; a stage that two suites share is there once."""

    def __init__(self, settings: SuiteSettings):
        self.settings = settings
        self.stages: dict[str, Stage] = {}
        preparation = json.loads((settings.data / "preparation.json").read_text(encoding="utf-8"))
        self.lowercase = bool(preparation.get("lowercase"))

    def build(self, suites: Sequence[str]) -> list[Stage]:
        for suite in suites:
            if suite not in SUITES:
                raise ValueError(f"suite={suite!r} is not one of {', '.join(SUITES)}")
            getattr(self, f"add_{suite}")()
        return list(self.stages.values())

    # Suites ----------------------------------------------------------------------------------------------------------

    def add_main(self) -> None:
        self.add_strong_teacher()
        self.add_student(JM)

    def add_table2(self) -> None:
        self.add_strong_teacher()
        for student in MAIN_STUDENTS:
            self.add_student(student, reranked=True)
        self.add_teacher("weak_teacher", max(1, round(self.settings.strong_teacher_steps * WEAK_TEACHER_SHARE)))
        self.add_distillation("weak_teacher", "weak_distilled")
        for student in WEAK_STUDENTS:
            self.add_student(student)
        self.add_student(NAT)
        self.add_teacher("teacher_on_distilled", data="distilled")

    def add_table4(self) -> None:
        self.add_strong_teacher()
        self.add_student(JM)
        for student in ABLATIONS:
            self.add_student(student)
        if self.settings.from_teacher:
            self.add_student(FROM_SCRATCH, from_teacher=False)
        for name, _, options in DECODINGS:
            self.add_evaluation("jm-1", f"jm-1.{name}", {"generation_options": json.dumps(options)})

    def add_strong_teacher(self) -> None:
        """The teacher whose translations all students learn from, and those translations."""
        self.add_teacher("teacher", self.settings.teacher_steps, preset=self.settings.teacher_preset)
        if self.settings.teacher_preset and self.settings.from_teacher:
            self.add_teacher("small_teacher", self.settings.teacher_steps)
        self.add_distillation("teacher", "distilled")

    # Stages ----------------------------------------------------------------------------------------------------------

    def add(self, name: str, script: str, options: dict, needs: Sequence[str] = (), trains: bool = False) -> None:
        command = (str(self.settings.scripts / script), *flags(options))
        self.stages.setdefault(name, Stage(name, command, tuple(needs), trains))

    def data_folder(self, data: str) -> tuple[Path, tuple[str, ...]]:
        """Folder of a training set and the stages that make it."""
        if data == "raw":
            return self.settings.data, ()
        return self.settings.output / data / "data", (f"prepare_{data}",)

    def add_teacher(self, name: str, steps: int | None = None, data: str = "raw", preset: str | None = None) -> None:
        folder, needs = self.data_folder(data)
        options = {
            "preset": preset or self.settings.preset,
            "data": folder,
            "output_dir": self.settings.output / name,
            **({} if steps is None else {"max_steps": steps}),
            **self.settings.training_options,
        }
        self.add(name, "train_teacher.py", options, needs, trains=True)
        self.add_evaluation(name, name, {}, autoregressive=True)

    def add_distillation(self, teacher: str, name: str) -> None:
        text = self.settings.output / name
        options = {"teacher": self.settings.output / teacher, "data": self.settings.data, "output_dir": text}
        options |= {"source_lang": "src", "target_lang": "tgt"}
        self.add(f"distill_{name}", "distill.py", options, [teacher])
        held_out = self.settings.output / "text"
        options = {
            "train_source": text / "distilled.src",
            "train_target": text / "distilled.tgt",
            "tokenizer": self.settings.data / "tokenizer",
            "output_dir": text / "data",
            "overwrite": True,
        }
        for split in ("validation", "test"):
            options |= {f"{split}_source": held_out / f"{split}.src", f"{split}_target": held_out / f"{split}.tgt"}
        if self.lowercase:
            options["lowercase"] = True
        self.add(f"prepare_{name}", "prepare_data.py", options, [f"distill_{name}"])

    def add_student(self, student: Student, from_teacher: bool | None = None, reranked: bool = False) -> None:
        folder, needs = self.data_folder(student.data)
        from_teacher = self.settings.from_teacher if from_teacher is None else from_teacher
        teacher = "small_teacher" if self.settings.teacher_preset else "teacher"
        if student.data == "weak_distilled":
            teacher = "weak_teacher"
        for seed in range(1, student.seeds + 1):
            name = f"{student.name}-{seed}"
            options = {
                "preset": self.settings.preset,
                "data": folder,
                "output_dir": self.settings.output / name,
                "seed": seed,
                **({} if self.settings.student_steps is None else {"max_steps": self.settings.student_steps}),
                **self.settings.training_options,
                **student.settings,
            }
            if from_teacher:
                options["init_from_teacher"] = self.settings.output / teacher
            if student.settings.get("decoder_input") == "source_copy":
                options |= {"eval_num_iterations": 1}
            self.add(name, "train_jmnat.py", options, (*needs, teacher), trains=True)
            evaluation = {"generation_options": json.dumps(student.decoding)} if student.decoding else {}
            if student.settings.get("decoder_input") == "source_copy":
                evaluation["num_iterations"] = 1
            self.add_evaluation(name, name, evaluation)
            if reranked:
                self.add_evaluation(
                    name, f"{name}.reranked", {**evaluation, "reranker": self.settings.output / "teacher"}
                )

    def add_evaluation(self, system: str, name: str, options: dict, autoregressive: bool = False) -> None:
        text = self.settings.output / "text"
        options = {
            "model": self.settings.output / system,
            "source": text / "test.src",
            "reference": text / "test.tgt",
            "output": self.settings.output / "results" / f"{name}.json",
            "lowercase": self.lowercase,
            "latency_sentences": self.settings.latency_sentences,
            **options,
        }
        if not autoregressive:
            options["num_length_candidates"] = self.settings.num_length_candidates
        self.add(f"evaluate_{name}", "evaluate.py", options, [system])


def export_held_out_text(data: Path, output: Path) -> None:
    """Write validation and test text of prepared data as line-aligned files, for the commands that read text."""
    dataset, _ = load_prepared(data)
    folder = output / "text"
    folder.mkdir(parents=True, exist_ok=True)
    (output / "results").mkdir(exist_ok=True)
    for split in ("validation", "test"):
        if split not in dataset:
            raise ValueError(f"{data} has no {split} split: prepare_data.py takes --{split}_source and _target")
        for column, ending in (("source", "src"), ("target", "tgt")):
            lines = "".join(f"{line}\n" for line in dataset[split][column])
            (folder / f"{split}.{ending}").write_text(lines, encoding="utf-8")


def result_rows(output: Path, names: Sequence[str]) -> Iterator[tuple[str, dict]]:
    """(evaluation name, its JSON) of those evaluations that are there."""
    for name in names:
        path = output / "results" / f"{name}.json"
        if path.is_file():
            yield name, json.loads(path.read_text(encoding="utf-8"))
