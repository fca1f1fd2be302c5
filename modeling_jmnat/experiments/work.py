"""How much the stages of a suite have to do, read from their commands: updates and translations by kind of model."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..evaluation.tuning import EXPONENTS
from ..teacher.run import teacher_defaults
from ..training.arguments import JMNatTrainingArguments
from ..training.presets import load_preset
from .runner import Stage
from .suites import layers_of

STUDENT, TEACHER, DISTILLING = "student", "teacher", "teacher, distilling"
# What the commands do where they are not told: passes, beams and length candidates.
PASSES, BEAMS, TUNED_PASSES, TUNED_BEAMS, CANDIDATES = (1, 4, 10), (1, 5), (4, 10), 5, 4

Options = Mapping[str, Sequence[str]]


class Kind(NamedTuple):
    """Work that is measured once: an update of the weights, or a translation.

    A translation counts by passes times length candidates of a student, by beams of a teacher. `preset` gives the
    sizes of the model; more layers count as more of this work.
    """

    preset: str
    who: str
    update: bool

    def __str__(self) -> str:
        what = "an update" if self.update else "a candidate's pass" if self.who == STUDENT else "a beam"
        return f"{what} of {self.preset}" + ("" if self.who == STUDENT else f" ({self.who})")


def options_of(stage: Stage) -> dict[str, list[str]]:
    """The values of each option of a stage's command."""
    options: dict[str, list[str]] = {}
    for part in stage.command[1:]:
        if part.startswith("--"):
            values = options.setdefault(part[2:], [])
        else:
            values.append(part)
    return options


def script_of(stage: Stage) -> str:
    return Path(stage.command[0]).name


def work_of(stages: Sequence[Stage], sentences: Mapping[str, int], preset: str) -> dict[str, Counter[Kind]]:
    """The work of each stage by its name; none where seconds suffice.

    Args:
        sentences: of the splits train, validation and test.
        preset: whose sizes a teacher is taken to have that no stage trains.
    """
    makers = {options_of(stage)["output_dir"][0]: stage for stage in stages if stage.trains}
    work = {}
    for stage in stages:
        script, options = script_of(stage), options_of(stage)
        if stage.trains:
            work[stage.name] = training_work(stage, sentences["validation"])
            continue
        if script == "distill.py":
            who, model, count = DISTILLING, options["teacher"][0], TUNED_BEAMS * sentences["train"]
        elif script in ("evaluate.py", "tune_decoding.py"):
            model = options["model"][0]
            who = who_is_trained(makers[model]) if model in makers else TEACHER
            split = Path(options["source"][0]).stem
            count = translations(script == "tune_decoding.py", who, options) * sentences[split]
        else:
            work[stage.name] = Counter()
            continue
        trained = options_of(makers[model]) if model in makers else {"preset": [preset]}
        work[stage.name] = Counter({Kind(trained["preset"][0], who, False): count * depth(trained)})
    return work


def who_is_trained(stage: Stage) -> str:
    return TEACHER if script_of(stage) == "train_teacher.py" else STUDENT


def numbers(options: Options, name: str, default: Sequence[int]) -> list[int]:
    return [int(value) for value in options.get(name, default)]


def depth(options: Options) -> float:
    """Layers of a training as a share of its preset's."""
    usual = layers_of(options["preset"][0])
    return sum(sum(numbers(options, name, [count])) for name, count in usual.items()) / sum(usual.values())


def training_work(stage: Stage, validation: int) -> Counter[Kind]:
    """Updates, and the translations of the validation set that choose checkpoints."""
    options, who = options_of(stage), who_is_trained(stage)
    name = options["preset"][0]
    preset = load_preset(name)
    usual = teacher_defaults(preset) if who == TEACHER else preset.training
    (updates,) = numbers(options, "max_steps", [usual.get("max_steps") or 0])
    (every,) = numbers(options, "eval_steps", [usual.get("eval_steps") or 0])
    (scored,) = numbers(options, "eval_sentences", [usual.get("eval_sentences") or validation])
    if who == TEACHER:
        each, last = sum(usual.get("eval_num_beams", [1])), sum(BEAMS)
    else:
        candidates = usual.get("eval_num_length_candidates", JMNatTrainingArguments.eval_num_length_candidates)
        passes = numbers(options, "eval_num_iterations", usual.get("eval_num_iterations") or [0])
        each, last = sum(passes) * candidates, passes[-1] * candidates
    evaluations = updates // every if every and usual.get("eval_strategy") != "no" else 0
    translated = evaluations * each * min(scored, validation) + last * validation
    share = depth(options)
    return Counter({Kind(name, who, True): updates * share, Kind(name, who, False): translated * share})


def translations(tuning: bool, who: str, options: Options) -> int:
    """What an evaluation or a tuning spends on each sentence: beams, or passes times candidates."""
    levels = len(options.get("noise_levels", [0]))
    if who == TEACHER:
        return levels * (TUNED_BEAMS * len(EXPONENTS) if tuning else sum(numbers(options, "num_beams", BEAMS)))
    generation, grid = (json.loads(options.get(name, ["{}"])[0]) for name in ("generation_options", "grid"))
    candidates = generation.get("num_length_candidates")
    candidates = candidates or sum(numbers(options, "num_length_candidates", [CANDIDATES]))
    passes = numbers(options, "num_iterations", TUNED_PASSES if tuning else PASSES)
    scoring = len(passes) if "reranker" in options else 0  # takes about as long as another pass
    return levels * math.prod(map(len, grid.values())) * (sum(passes) + scoring) * candidates
