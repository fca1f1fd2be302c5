"""The paper's experiments as stages: which systems are trained with which settings, and how each is decoded."""

import json
from collections.abc import Sequence
from pathlib import Path

from ..data.preparation import load_prepared
from ..teacher.model import can_start
from ..training.presets import load_preset
from ..utils.json_files import read_json
from .runner import Stage
from .settings import SuiteSettings, layers_of
from .systems import (
    ABLATIONS,
    ADDITIONS,
    AUTOREGRESSIVE,
    CM,
    DECODINGS,
    DEEPER_NATS,
    FROZEN_NATS,
    JM,
    MAIN_STUDENTS,
    NAT,
    NAT_SCRATCH,
    OTHERS,
    OWN_DECODINGS,
    RECIPES,
    REMASKING,
    STATE_NOISE_LEVELS,
    SUITES,
    WEAK_STUDENTS,
    WORD_NOISE_LEVELS,
    Autoregressive,
    Student,
    remasking_of,
)
from .tables import BEAMS, teacher_of

WEAK_TEACHER_SHARE = 0.88  # of the teacher's updates: about as much weaker as the paper's (0.6 BLEU)
FINAL = ("validation", "test")  # what the final rows are scored on; all others on the validation text alone
CASE_PASSES = 4
# Options that are tuned on the validation text, together with the exponent of the length.
TUNED_OPTIONS = {"remask_adjacent": [True, False]}


class SuiteBuilder:
    """Collects the stages of one or more suites; a stage that two suites share is added once."""

    def __init__(self, settings: SuiteSettings):
        self.settings = settings
        self.stages: dict[str, Stage] = {}
        preparation = read_json(settings.data / "preparation.json", what_to_do="prepare the data again")
        self.lowercase = bool(preparation.get("lowercase"))
        self.target_language = preparation.get("target_lang") or preparation.get("moses_target_lang") or "en"
        tokenizer = settings.bleu_tokenize
        self.scoring = {} if tokenizer is None else {"bleu_tokenize": tokenizer}
        self.first_teacher = self.teacher_to_start_with()

    def build(self, suites: Sequence[str]) -> list[Stage]:
        for suite in suites:
            if suite not in SUITES:
                raise ValueError(f"suite={suite!r} is not one of {', '.join(SUITES)}")
            getattr(self, f"add_{suite}")()
        return list(self.stages.values())

    # Suites ----------------------------------------------------------------------------------------------------------

    def add_main(self) -> None:
        self.add_strong_teacher(FINAL)
        self.add_student(JM, FINAL)

    def add_table1(self) -> None:
        self.add_strong_teacher()
        for student in (NAT_SCRATCH, *DEEPER_NATS):
            self.add_student(student)

    def add_table2(self) -> None:
        self.add_strong_teacher(FINAL)
        first, *others = AUTOREGRESSIVE
        for student in MAIN_STUDENTS[:2]:  # the main comparison comes first: a run may end before the last
            self.add_final_student(student)
        self.add_autoregressive(first)
        for student in MAIN_STUDENTS[2:]:
            self.add_final_student(student)
        self.add_student(NAT, FINAL)
        for baseline in others:
            self.add_autoregressive(baseline)
        self.add_tuned("teacher", "teacher", autoregressive=True)
        preset = self.settings.preset
        weak_steps = max(1, round(self.settings.teacher_updates(preset) * WEAK_TEACHER_SHARE))
        self.add_teacher("weak_teacher", preset, weak_steps, splits=FINAL)
        self.add_distillation("weak_teacher", "weak_distilled")
        for student in WEAK_STUDENTS:
            self.add_student(student, FINAL)
            self.add_reranked(student)
        if self.settings.latency_sentences:
            timed = {"latency_sentences": self.settings.latency_sentences}
            for name in ("teacher", *(f"{baseline.name}-1" for baseline in AUTOREGRESSIVE)):
                self.add_evaluation(name, f"{name}.latency", timed, autoregressive=True, alone=True)
            for student in MAIN_STUDENTS[:2]:
                name = f"{student.name}-1"
                self.add_evaluation(name, f"{name}.latency", timed | self.decoding(student), alone=True)
        self.add_others(FINAL)
        for student in OTHERS if self.settings.latency_sentences else ():
            name = f"{student.name}-1"
            self.add_evaluation(name, f"{name}.latency", timed | self.decoding(student), alone=True)

    def add_others(self, splits: Sequence[str] = ("validation",)) -> None:
        """The paper's other systems, also reranked by the teacher where the test text is scored."""
        for student in OTHERS:
            self.add_student(student, splits)
            for name in self.names_of(student) if splits == FINAL else ():
                for count in student.reranked:
                    decoding = {"generation_options": json.dumps(student.decoding | {"num_length_candidates": count})}
                    options = self.decoding(student) | decoding | self.reranker(student)
                    self.add_evaluation(name, f"{name}.npd{count}", options, splits=splits)

    def add_final_student(self, student: Student) -> None:
        """A student of table 2: by itself, reranked by the teacher, and with tuned decoding."""
        self.add_student(student, FINAL)
        self.add_decodings(student, FINAL)
        self.add_reranked(student)
        for name in self.names_of(student):
            self.add_tuned(name, name)
            self.add_tuned(name, f"{name}.reranked", self.reranker(student))

    def add_table3(self) -> None:
        self.add_strong_teacher()
        for student in (JM, CM, NAT):
            self.add_student(student)
        self.add_others()

    def add_table4(self) -> None:
        self.add_strong_teacher()
        for student in (JM, CM):
            self.add_student(student)
        for seed_name in self.names_of(JM):
            for name, _, options in DECODINGS:
                self.add_evaluation(seed_name, f"{seed_name}.{name}", {"generation_options": json.dumps(options)})
        for student in (JM, CM, *ADDITIONS, *ABLATIONS, *RECIPES):
            if student.from_teacher or self.settings.from_teacher:
                self.add_student(student)
                self.add_decodings(student)

    def add_decodings(self, student: Student, splits: Sequence[str] = ("validation",)) -> None:
        """Evaluations that show whether a training setting also helps with another decoding than its own."""
        for name in self.names_of(student):
            for remasking, options in REMASKING.items():
                if remasking != remasking_of(student):
                    other = {"generation_options": json.dumps(options), "num_iterations": [4, 10]}
                    self.add_evaluation(name, f"{name}.{remasking}", other, splits=splits)
            for setting, decoding, _, options in OWN_DECODINGS:
                if student.settings.get(setting):
                    own = {"generation_options": json.dumps(options), "num_iterations": [4, 10]}
                    self.add_evaluation(name, f"{name}.{decoding}", own, splits=splits)

    def add_figure1(self) -> None:
        self.add_strong_teacher()
        self.add_student(NAT_SCRATCH)
        for name in self.names_of(NAT_SCRATCH):
            for place in ("encoder_input", "encoder_output", "decoder_input"):
                noise = {"num_iterations": 1, "noise": place, "noise_levels": STATE_NOISE_LEVELS}
                self.add_evaluation(name, f"{name}.{place}", noise)
        for student in FROZEN_NATS:
            self.add_student(student)

    def add_figure3(self) -> None:
        self.add_strong_teacher()
        for student in (JM, CM):
            self.add_student(student)
        for student in OTHERS:
            self.add_student(student)
        for noise in ("drop", "replace"):
            options = {"noise": noise, "noise_levels": WORD_NOISE_LEVELS}
            self.add_evaluation("teacher", f"teacher.{noise}", options | {"num_beams": 5}, autoregressive=True)
            for student in (JM, CM, *OTHERS):
                decoding = self.decoding(student) | {"num_iterations": 1 if student.one_pass else 10}
                for name in self.names_of(student):
                    self.add_evaluation(name, f"{name}.{noise}", options | decoding)

    def add_case_study(self) -> None:
        self.add_strong_teacher()
        self.add_translation("teacher", {"num_beams": 5})
        for student in (JM, CM, *OTHERS):
            self.add_student(student, seeds=1)
            passes = {"num_iterations": 1 if student.one_pass else CASE_PASSES, "show_passes": True}
            if "num_length_candidates" not in student.decoding:
                passes["num_length_candidates"] = self.settings.num_length_candidates
            self.add_translation(f"{student.name}-1", self.decoding(student) | passes)

    def add_strong_teacher(self, splits: Sequence[str] = ("validation",)) -> None:
        """The teacher whose translations all students learn from, and those translations."""
        settings = self.settings
        if settings.teacher is None:
            preset = settings.teacher_preset or settings.preset
            self.add_teacher("teacher", preset, settings.teacher_steps, splits=splits)
        else:
            self.add_evaluation("teacher", "teacher", {}, autoregressive=True, splits=splits)
        if self.first_teacher != "teacher" and settings.from_teacher:
            self.add_teacher(self.first_teacher, settings.preset, settings.teacher_steps)
        self.add_distillation("teacher", "distilled")

    def teacher_to_start_with(self) -> str:
        """The teacher that students start from: a small one of their own size if the strong one does not fit."""
        settings = self.settings
        if settings.teacher is None:
            return "small_teacher" if settings.teacher_preset else "teacher"
        _, tokenizer = load_prepared(settings.data)
        fits = can_start(settings.teacher, load_preset(settings.preset).model, tokenizer)
        return "teacher" if fits else "small_teacher"

    # Stages ----------------------------------------------------------------------------------------------------------

    def add(self, name: str, command: str, options: dict, needs: Sequence[str] = (), **fields) -> None:
        options = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
        if self.settings.teacher is not None:
            needs = [need for need in needs if need != "teacher"]
        self.stages.setdefault(name, Stage(name, command, options, tuple(needs), **fields))

    def model_of(self, system: str) -> Path | str:
        """Folder of a system's model."""
        if system == "teacher" and self.settings.teacher is not None:
            return self.settings.teacher
        return self.settings.output / system

    def training_set(self, data: str) -> tuple[Path, tuple[str, ...]]:
        """As `data_folder`, and adds the stage that makes the data if no other system has."""
        if data == "both":
            self.add_preparation("both", self.settings.output / "distilled", {"append_train_of": self.settings.data})
        return self.data_folder(data)

    def data_folder(self, data: str) -> tuple[Path, tuple[str, ...]]:
        """Folder of a training set and the stages that make it."""
        if data == "raw":
            return self.settings.data, ()
        return self.settings.output / data / "data", (f"prepare_{data}",)

    def training_options(self) -> dict:
        tokens = self.settings.batch_tokens
        evaluation = self.scoring | ({} if tokens is None else {"eval_batch_tokens": tokens})
        return evaluation | self.settings.training_options

    def add_teacher(
        self, name: str, preset: str, steps: int | None = None, splits: Sequence[str] = ("validation",)
    ) -> None:
        """Training and evaluation of a teacher."""
        if steps is None:
            self.settings.teacher_updates(preset)  # refuses a preset without an end
        options = {
            "preset": preset,
            "data": self.settings.data,
            "output_dir": self.settings.output / name,
            **({} if steps is None else {"max_steps": steps}),
            **self.training_options(),
        }
        self.add(name, "train_teacher", options, trains=True)
        self.add_evaluation(name, name, {}, autoregressive=True, splits=splits)

    def add_autoregressive(self, baseline: Autoregressive) -> None:
        """Trainings of an autoregressive baseline, one per seed, each with its evaluation."""
        settings = self.settings
        folder, needs = self.training_set(baseline.data)
        tokens = load_preset(settings.preset).training.get("max_tokens")
        for seed in range(1, settings.seeds + 1):
            name = f"{baseline.name}-{seed}"
            options = {
                "preset": settings.preset,
                "data": folder,
                "output_dir": settings.output / name,
                "seed": seed,
                "max_steps": settings.teacher_updates(settings.preset) + settings.student_updates(),
                **({} if tokens is None else {"max_tokens": tokens}),
                **self.training_options(),
                **baseline.layers,
            }
            self.add(name, "train_teacher", options, needs, trains=True)
            self.add_evaluation(name, name, {}, autoregressive=True, splits=FINAL)

    def add_distillation(self, teacher: str, name: str) -> None:
        text = self.settings.output / name
        options = {"teacher": self.model_of(teacher), "data": self.settings.data, "output_dir": text}
        options |= {"source_lang": "src", "target_lang": "tgt"}
        if self.settings.batch_tokens is not None:
            options["batch_tokens"] = 8 * self.settings.batch_tokens
        self.add(f"distill_{name}", "distill", options, [teacher])
        self.add_preparation(name, text)

    def add_preparation(
        self, name: str, text: Path, more: dict | None = None, sides: tuple[str, str] = ("src", "tgt")
    ) -> None:
        """Training data in OUTPUT/NAME/data, made of the distilled text in the folder `text`."""
        held_out, (source, target) = self.settings.output / "text", sides
        options = {
            "train_source": text / f"distilled.{source}",
            "train_target": text / f"distilled.{target}",
            "tokenizer": self.settings.data / "tokenizer",
            "output_dir": self.settings.output / name / "data",
            "overwrite": True,
            **(more or {}),
        }
        for split in ("validation", "test"):
            options[f"{split}_source"] = held_out / f"{split}.{source}"
            options[f"{split}_target"] = held_out / f"{split}.{target}"
        if self.lowercase:
            options["lowercase"] = True
        self.add(f"prepare_{name}", "prepare", options, [f"distill_{text.name}"])

    def decoding(self, student: Student) -> dict:
        """Options of the commands evaluate and translate for a student."""
        options: dict = {"generation_options": json.dumps(student.decoding)} if student.decoding else {}
        passes: Sequence[int] | int = 1 if student.one_pass else student.passes
        return options | ({"num_iterations": passes} if passes else {})

    def names_of(self, student: Student) -> list[str]:
        """The trainings of a student: `NAME-SEED`."""
        return [f"{student.name}-{seed}" for seed in range(1, self.settings.seeds + 1)]

    def add_student(self, student: Student, splits: Sequence[str] = ("validation",), seeds: int | None = None) -> None:
        """Trainings of a student, one per seed, each with its evaluation."""
        settings = self.settings
        folder, needs = self.training_set(student.data)
        layers = layers_of(settings.preset)
        deeper = {name: layers[name] + count for name, count in student.more_layers.items()}
        updates = round(settings.student_updates() * student.more_steps)
        for seed, name in enumerate(self.names_of(student)[:seeds], 1):
            start, waits_for = self.start_of(student, seed)
            guide, also_for = self.guide_of(student)
            options = {
                "preset": settings.preset,
                "data": folder,
                "output_dir": settings.output / name,
                "seed": seed,
                **({} if settings.student_steps is None and student.more_steps == 1 else {"max_steps": updates}),
                **self.training_options(),
                **student.settings,
                **deeper,
                **start,
                **guide,
                **({"eval_num_iterations": 1} if student.one_pass else {}),
            }
            self.add(name, "train", options, tuple(dict.fromkeys((*needs, *waits_for, *also_for))), trains=True)
            self.add_evaluation(name, name, self.decoding(student), splits=splits)

    def start_of(self, student: Student, seed: int) -> tuple[dict, tuple[str, ...]]:
        """Options for the initial weights of a student, and the stages that make them."""
        if student.start is not None:
            start = f"{student.start}-{seed}"
            return {"init_from": self.model_of(start)}, (start,)
        if not (student.from_teacher and self.settings.from_teacher):
            return {}, ()
        teacher = teacher_of(student)
        if teacher == "teacher":
            teacher = self.first_teacher
        return {"init_from_teacher": self.model_of(teacher)}, (teacher,)

    def guide_of(self, student: Student) -> tuple[dict, tuple[str, ...]]:
        """The option for the model that a system learns from, and the stages that make it."""
        if student.guide is None:
            return {}, ()
        settings, teacher = self.settings, self.first_teacher
        if student.guide == "backward":
            teacher, reversed_text = "backward_teacher", ("tgt", "src")
            self.add_preparation("reversed", settings.output / "distilled", sides=reversed_text)
            data, needs = self.data_folder("reversed")
            options = {"preset": settings.preset, "data": data, "output_dir": settings.output / teacher}
            steps = {} if settings.teacher_steps is None else {"max_steps": settings.teacher_steps}
            self.add(teacher, "train_teacher", options | steps | self.training_options(), needs, trains=True)
        elif teacher != "teacher":
            self.add_teacher(teacher, settings.preset, settings.teacher_steps)
        return {"guide": self.model_of(teacher)}, (teacher,)

    def add_tuned(self, system: str, name: str, more: dict | None = None, autoregressive: bool = False) -> None:
        """The best decoding on the validation text, and an evaluation with it; `more` are options of both."""
        text, chosen = self.settings.output / "text", self.result("validation", f"{name}.tuning")
        candidates = {
            "num_length_candidates": self.settings.num_length_candidates,
            "grid": json.dumps(TUNED_OPTIONS),
        }
        options = {
            "model": self.model_of(system),
            "source": text / "validation.src",
            "reference": text / "validation.tgt",
            "output": chosen,
            "lowercase": self.lowercase,
            "save": False,
            **self.scoring,
            **({} if self.settings.batch_tokens is None else {"batch_tokens": self.settings.batch_tokens}),
            **({} if autoregressive else candidates),
            **(more or {}),
        }
        self.add(f"tune_{name}", "tune", options, [system, *self.reranker_stage(options)])
        tuned = {"tuning": chosen, **({"num_beams": BEAMS[-1]} if autoregressive else {}), **(more or {})}
        needs = [f"tune_{name}"]
        self.add_evaluation(system, f"{name}.tuned", tuned, autoregressive, needs=needs, splits=("test",))

    def result(self, split: str, name: str) -> Path:
        return self.settings.output / "results" / split / f"{name}.json"

    def add_evaluation(
        self,
        system: str,
        name: str,
        options: dict,
        autoregressive: bool = False,
        alone: bool = False,
        needs: Sequence[str] = (),
        splits: Sequence[str] = ("validation",),
    ) -> None:
        """Evaluations of a system with these options, one for each split: `results/SPLIT/NAME.json`."""
        text = self.settings.output / "text"
        options = {
            "model": self.model_of(system),
            "lowercase": self.lowercase,
            "target_language": self.target_language,
            **self.scoring,
            **({} if self.settings.batch_tokens is None else {"batch_tokens": self.settings.batch_tokens}),
            **({} if autoregressive else {"num_length_candidates": self.settings.num_length_candidates}),
            **options,
        }
        if "num_length_candidates" in json.loads(options.get("generation_options", "{}")):
            del options["num_length_candidates"]
        needs = [system, *self.reranker_stage(options), *needs]
        for split in splits:
            files = {"source": text / f"{split}.src", "reference": text / f"{split}.tgt"}
            files["output"] = self.result(split, name)
            self.add(f"evaluate_{name}.{split}", "evaluate", files | options, needs, alone=alone)

    def reranker(self, student: Student) -> dict:
        return {"reranker": self.model_of(teacher_of(student))}

    def reranker_stage(self, options: dict) -> list[str]:
        """The stage that makes the reranker of an evaluation, if it has one."""
        made = {self.model_of(name): name for name in ("teacher", "weak_teacher")}
        return [made[options["reranker"]]] if "reranker" in options else []

    def add_reranked(self, student: Student) -> None:
        for name in self.names_of(student):
            options = self.decoding(student) | self.reranker(student)
            self.add_evaluation(name, f"{name}.reranked", options, splits=FINAL)

    def add_translation(self, system: str, options: dict) -> None:
        options = {
            "model": self.model_of(system),
            "input": self.settings.output / "text" / "cases.src",
            "output": self.settings.output / "results" / f"{system}.cases.txt",
            **options,
        }
        self.add(f"translate_{system}", "translate", options, [system])
