"""From an autoregressive teacher to a JM-NAT in one resumable run: start, text, training, tuning, scores of both.

OUTPUT/start       the student before it is trained: the teacher's tokenizer and weights
OUTPUT/distilled   the teacher's translations of the training text
OUTPUT/model       the student
OUTPUT/results     scores and times of student and teacher; logs and marks of the stages are beside it
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..spelling import clean_text
from ..utils.atomic_files import write_json
from ..utils.fingerprints import file_digest, model_digest
from ..utils.json_files import read_json
from ..utils.text_files import read_lines, read_parallel, write_lines
from .inputs import BEGUN_WITH, check_recorded
from .runner import Stage

LARGEST_HELD_OUT = 1000  # sentences
HELD_OUT_SHARE = 20  # at most one in this many training sentences is held out
LONGEST_HELD_OUT = 500  # bytes: no tokenizer makes more tokens of it than a model can read
LONGEST_SENTENCE = 512  # tokens, as many as a model can read
SIDES = ("src", "tgt")
PASSES = (1, 4, 10)


@dataclass(frozen=True)
class Conversion:
    """A teacher to convert, and the text to do it with.

    Args:
        teacher: a folder, or a name on the Hub.
        output: folder of the run.
        train, validation, test: a source and a target file each. The teacher translates where the target is missing.
            Without validation text, training sentences are held out; without test text, validation text is scored.
        start, decoding, distillation, training: further options of the commands `init`, `evaluate` of the teacher,
            `distill` and `train`.
        target_language: language that chooses sacreBLEU's tokenizer.
        num_length_candidates: C of the student.
        latency_sentences: number of sentences that are timed one by one.
    """

    teacher: str
    output: Path
    train: tuple[str, str | None]
    validation: tuple[str | None, str | None] = (None, None)
    test: tuple[str | None, str | None] = (None, None)
    start: Mapping[str, object] = field(default_factory=dict)
    decoding: Mapping[str, object] = field(default_factory=dict)
    distillation: Mapping[str, object] = field(default_factory=dict)
    training: Mapping[str, object] = field(default_factory=dict)
    target_language: str = "en"
    num_length_candidates: int = 4
    latency_sentences: int = 100

    def check(self) -> None:
        """Refuse at the start what would otherwise fail after hours.

        Raises:
            ValueError: targets without sources, or held-out sources without targets where training text has them.
        """
        for name in ("validation", "test"):
            source, target = getattr(self, name)
            if (source is None) != (target is None):
                raise ValueError(f"{name}_source={source} and {name}_target={target}: give both files or neither")
        for source, target in (self.train, self.validation, self.test):
            if source is not None and target is not None:
                read_parallel(source, target)

    @property
    def references_are_the_teachers(self) -> bool:
        """Whether the references of the scored text are the teacher's own translations."""
        return self.train[1] is None and self.validation[0] is None and self.test[0] is None

    def path(self, *parts: str) -> str:
        return str(self.output.joinpath(*parts))

    # Text ------------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Record what identifies the run, and write the text that it holds out.

        Raises:
            ValueError: the folder belongs to a run with another teacher or other text.
        """
        now = {"teacher": model_digest(self.teacher)}
        for name in ("train", "validation", "test"):
            files = zip(("source", "target"), getattr(self, name), strict=True)
            now.update({f"{name}_{side}": file_digest(path) for side, path in files if path is not None})
        check_recorded(self.output)
        begun = self.output / BEGUN_WITH
        if begun.is_file():
            before = read_json(begun, what_to_do="restore it or choose another --output")
            changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
            if changed:
                raise ValueError(
                    f"output={self.output} was begun with another {' and '.join(changed)}: give the same again or "
                    "choose another --output"
                )
            return
        if self.validation[0] is None:
            self.hold_out()
        (self.output / "results").mkdir(exist_ok=True)
        write_json(begun, now)

    def hold_out(self) -> None:
        """Write text/train.* and text/validation.*; the sentences held out are spread evenly over the text.

        Lines that validation text cannot have, because a side is empty or very long, are not held out. Training text
        has no copies of a sentence that is.
        """
        sides = read_parallel(*self.train) if self.train[1] else (read_lines(self.train[0]),)
        rows = [
            row
            for row, lines in enumerate(zip(*sides, strict=True))
            if all(0 < len(clean_text(line).encode()) <= LONGEST_HELD_OUT for line in lines)
        ]
        count = min(LARGEST_HELD_OUT, len(rows) // HELD_OUT_SHARE)
        if not count:
            raise ValueError(
                f"{self.train[0]} has {len(rows)} lines of text, not counting very long ones: give at least "
                f"{HELD_OUT_SHARE}, or --validation_source"
            )
        held_out = {rows[place * len(rows) // count] for place in range(count)}
        sources = {sides[0][row] for row in held_out}
        (self.output / "text").mkdir(parents=True, exist_ok=True)
        for side, lines in zip(SIDES, sides, strict=False):
            kept = (line for source, line in zip(sides[0], lines, strict=True) if source not in sources)
            write_lines(self.output / "text" / f"train.{side}", kept)
            write_lines(self.output / "text" / f"validation.{side}", (lines[row] for row in sorted(held_out)))

    def training_text(self) -> tuple[str, str]:
        """Source and target of the text to distil; the source takes the place of a missing target."""
        source, target = self.train
        if self.validation[0] is None:
            source, target = self.path("text", "train.src"), target and self.path("text", "train.tgt")
        return source, target or source

    def validation_text(self) -> tuple[str, str]:
        if self.validation[0] and self.validation[1]:
            return self.validation[0], self.validation[1]
        if self.train[1]:
            return self.path("text", "validation.src"), self.path("text", "validation.tgt")
        return self.path("held_out", "distilled.src"), self.path("held_out", "distilled.tgt")

    # Stages ----------------------------------------------------------------------------------------------------------

    def stages(self) -> list[Stage]:
        return [*self.preparation_stages(), *self.training_stages(), *self.evaluation_stages()]

    def preparation_stages(self) -> Iterator[Stage]:
        """The student's start, and the teacher's translations."""
        yield Stage("start", "init", {"teacher": self.teacher, "output": self.path("start"), **self.start})
        needs: tuple[str, ...] = ()
        if self.validation[0] is None and self.train[1] is None:
            sources = (self.path("text", "validation.src"),) * 2
            yield self.prepared("held_out_data", sources, sources)
            yield self.distilled("held_out", "held_out_data", {})
            needs = ("held_out",)
        files = self.training_text()
        yield self.prepared("sources", files, self.validation_text(), needs)
        yield self.distilled("distilled", "sources", self.distillation)
        files = (self.path("distilled", "distilled.src"), self.path("distilled", "distilled.tgt"))
        yield self.prepared("data", files, self.validation_text(), ("distilled",))

    def prepared(
        self, name: str, train: tuple[str, str], validation: tuple[str, str], needs: tuple[str, ...] = ()
    ) -> Stage:
        options = {
            "output_dir": self.path(name),
            "tokenizer": self.path("start"),
            "train_source": train[0],
            "train_target": train[1],
            "validation_source": validation[0],
            "validation_target": validation[1],
            "overwrite": True,
        }
        if train[0] == train[1]:  # in the target language's tokens, the source may be much longer or shorter
            options |= {"max_length_ratio": 0, "max_tokens_per_sentence": LONGEST_SENTENCE}
        return Stage(name, "prepare", options, ("start", *needs))

    def distilled(self, name: str, data: str, options: Mapping[str, object]) -> Stage:
        files = {"teacher": self.teacher, "data": self.path(data), "output_dir": self.path(name)}
        languages = {f"{side}_lang": ending for side, ending in zip(("source", "target"), SIDES, strict=True)}
        return Stage(
            name, "distill", {**files, **languages, **self.told_to_the_teacher("distill"), **options}, (data,)
        )

    def told_to_the_teacher(self, command: str) -> dict[str, object]:
        """Languages, in the words of a command."""
        told: dict[str, object] = {}
        if languages := self.start.get("teacher_languages"):
            told["teacher_languages" if command == "distill" else "languages"] = languages
        if code := self.start.get("language_code"):
            told["teacher_prefix" if command == "distill" else "source_prefix"] = f"{code} "
        return told

    def training_stages(self) -> Iterator[Stage]:
        source, reference = self.validation_text()
        options = {"init_from": self.path("start"), "data": self.path("data"), "output_dir": self.path("model")}
        yield Stage("model", "train", {**options, **self.training}, ("data",), trains=True)
        options = {
            "model": self.path("model"),
            "source": source,
            "reference": reference,
            "num_length_candidates": self.num_length_candidates,
            "repeat_rules": ("none", "collapse", "remask"),
            "target_language": self.target_language,
            "output": self.path("results", "tuning.json"),
        }
        yield Stage("tuned", "tune", options, ("model",))

    def evaluation_stages(self) -> Iterator[Stage]:
        source, reference = self.test if self.test[0] else self.validation_text()
        shared = {
            "source": source,
            "reference": reference,
            "target_language": self.target_language,
            "latency_sentences": self.latency_sentences,
        }
        student = {"num_iterations": PASSES, "num_length_candidates": self.num_length_candidates}
        teacher = {"num_beams": (1, 5), **self.told_to_the_teacher("evaluate")}
        for name, model, options, needs in (
            ("student", self.path("model"), student, ("tuned",)),
            ("teacher", self.teacher, teacher, ("sources",)),  # which has the text that is scored
        ):
            output = {"output": self.path("results", f"{name}.json")}
            yield Stage(
                f"{name}_scores", "evaluate", {"model": model, **shared, **options, **output}, needs, alone=True
            )


def comparison(output: Path) -> list[dict]:
    """A row for each way of decoding that has been evaluated, the teacher's first; BLEU with its 95% interval."""
    rows = []
    for name in ("teacher", "student"):
        path = output / "results" / f"{name}.json"
        for row in read_json(path, ("results",))["results"] if path.is_file() else []:
            passes, beams = row.get("num_iterations"), row.get("num_beams")
            rows.append(
                {
                    "model": name,
                    "decoding": f"k = {passes}" if passes else f"beam {beams}" if beams > 1 else "greedy",
                    "sacrebleu": row["sacrebleu"],
                    "interval": row["intervals"]["sacrebleu"],
                    "chrfpp": row["chrfpp"],
                    "ms_per_sentence": row.get("latency_ms", {}).get("mean"),
                }
            )
    return rows


def comparison_table(rows: list[dict]) -> str:
    """The rows as a table for a person to read."""
    lines = ["model    decoding  sacreBLEU   (95%)        chrF++  ms per sentence"]
    for row in rows:
        time = "" if row["ms_per_sentence"] is None else f"{row['ms_per_sentence']:.0f}"
        low, high = row["interval"]
        scores = f"{row['sacrebleu']:9.1f}   {low:.1f} to {high:.1f}   {row['chrfpp']:6.1f}"
        lines.append(f"{row['model']:8} {row['decoding']:8}  {scores}  {time:>15}")
    return "\n".join(lines)
