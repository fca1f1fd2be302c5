"""From a teacher to a scored student by one command: which stages, on which text, and all of it on a small one."""

import json
import random
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from modeling_jmnat import JMNatForConditionalGeneration
from modeling_jmnat.commands import convert_teacher
from modeling_jmnat.data.options import PreparationArguments
from modeling_jmnat.data.preparation import prepare
from modeling_jmnat.experiments.runner import StageRunner
from modeling_jmnat.experiments.teacher_conversion import Conversion, comparison, comparison_table
from modeling_jmnat.inference.teacher_tokenizer import tokenizer_of_teacher
from tests.helpers.marian_teacher import opus_model, train, train_segmenter, write_tokenizer
from tests.helpers.teacher_samples import random_teacher
from tests.helpers.translation_samples import random_lines, tiny_tokenizer

SIZES = {f"{half}_{size}": 2 for half in ("encoder", "decoder") for size in ("layers", "attention_heads")}
SIZES |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "d_model": 16, "max_position_embeddings": 40}


def write_pairs(folder):
    """120 pairs as files."""
    lines = random_lines(120, seed=3)
    files = folder / "a.src", folder / "a.tgt"
    for file, side in zip(files, (lines, [line[::-1] for line in lines]), strict=True):
        file.write_text("".join(f"{line}\n" for line in side))
    return tuple(map(str, files))


@pytest.fixture
def text(tmp_path):
    return write_pairs(tmp_path)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    text = write_pairs(folder)
    segmenters = [train_segmenter(Path(file).read_text().splitlines(), 60) for file in text]
    tokenizer = write_tokenizer(folder, *segmenters, prefixes=(">>eng<<",))
    torch.manual_seed(1)
    pairs = dict(zip(("source", "target"), (Path(file).read_text().splitlines() for file in text), strict=True))
    # Until its translations are about as long as the text.
    train(
        opus_model(tokenizer, **SIZES),
        tokenizer,
        Dataset.from_dict(pairs),
        folder,
        per_device_train_batch_size=40,
        max_steps=150,
        learning_rate=0.01,
        disable_tqdm=True,
    )
    return str(folder)


def stages_of(**fields):
    return {stage.name: stage for stage in Conversion(**fields).stages()}


def test_real_targets_are_references_and_never_training_text(tmp_path, teacher, text):
    held_out = Conversion(teacher, tmp_path / "run", text)
    stages = {stage.name: stage for stage in held_out.stages()}
    assert list(stages) == [
        *("start", "sources", "distilled", "data", "model", "tuned", "student_scores", "teacher_scores")
    ]
    assert stages["data"].options["train_target"] == str(tmp_path / "run" / "distilled" / "distilled.tgt")
    for name, option in (("data", "validation_target"), ("tuned", "reference"), ("student_scores", "reference")):
        assert stages[name].options[option] == str(tmp_path / "run" / "text" / "validation.tgt")
    given = stages_of(
        teacher=teacher, output=tmp_path / "run", train=text, validation=("v.src", "v.tgt"), test=("t.src", "t.tgt")
    )
    assert given["sources"].options["train_source"] == text[0]
    assert (given["tuned"].options["source"], given["teacher_scores"].options["source"]) == ("v.src", "t.src")
    assert not held_out.references_are_the_teachers


def test_held_out_sentences_are_spread_and_not_trained_on(tmp_path, teacher, text):
    conversion = Conversion(teacher, tmp_path / "run", text)
    conversion.output.mkdir()
    conversion.begin()
    pairs = list(zip(*(Path(file).read_text().splitlines() for file in text), strict=True))

    def written(split):
        sides = [(tmp_path / "run" / "text" / f"{split}.{side}").read_text().splitlines() for side in ("src", "tgt")]
        return list(zip(*sides, strict=True))

    assert written("validation") == pairs[::20]
    assert written("train") == [pair for row, pair in enumerate(pairs) if row % 20]
    conversion.begin()  # the same again
    Path(text[1]).write_text(Path(text[1]).read_text().upper())
    with pytest.raises(ValueError, match="was begun with another train_target"):
        conversion.begin()
    (conversion.output / "begun_with.json").unlink()
    (conversion.output / "logs").mkdir()
    (conversion.output / "logs" / "start.log").write_text("begun")
    with pytest.raises(ValueError, match=r"holds stages of a run but no begun_with\.json"):
        conversion.begin()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_source": "v.src"}, "validation_source=v.src and validation_target=None: give both"),
        ({"teacher": "no/such/folder"}, "the folder no/such/folder does not exist"),
        ({"append_raw": "true"}, "append_raw=True needs train_target"),
        ({"time_budget": "0"}, "time_budget=0.0 must be above 0 minutes"),
        ({"latency_sentences": "-1"}, "latency_sentences=-1 must be at least 0"),
        ({"preset": "from_techer"}, "from_techer"),
    ],
)
def test_what_would_fail_later_is_refused_at_once(options, message, tmp_path, teacher, text, capsys):
    words = {"teacher": teacher, "train_source": text[0], "output": str(tmp_path / "run"), **options}
    with pytest.raises(SystemExit):
        convert_teacher.main([word for name, value in words.items() for word in (f"--{name}", value)])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_lines_that_validation_text_cannot_have_are_not_held_out(tmp_path):
    lines = random_lines(60, seed=4)
    lines[::20] = ("", "\u200b ", "long " * 120)  # the rows that would be chosen among all
    lines[5] = lines[21]
    (tmp_path / "a").write_text("".join(f"{line}\n" for line in lines))
    conversion = Conversion("teacher", tmp_path / "run", (str(tmp_path / "a"), None))
    conversion.hold_out()
    train, validation = ((tmp_path / "run" / "text" / f"{name}.src").read_text() for name in ("train", "validation"))
    train, validation = train.splitlines(), validation.splitlines()
    assert len(validation) == 2
    assert all(0 < len(line) <= 500 for line in validation)
    assert not set(train) & set(validation)
    (tmp_path / "a").write_text("\n" * 60 + "one line\n")
    with pytest.raises(ValueError, match="has 1 lines of text, not counting very long ones: give at least 20"):
        conversion.hold_out()


def test_pairs_with_an_empty_side_are_not_held_out(tmp_path):
    lines = random_lines(60, seed=4)
    targets = [line[::-1] for line in lines]
    targets[0] = ""
    for name, side in (("a", lines), ("b", targets)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in side))
    conversion = Conversion("teacher", tmp_path / "run", (str(tmp_path / "a"), str(tmp_path / "b")))
    conversion.hold_out()
    written = [
        [(tmp_path / "run" / "text" / f"{part}.{side}").read_text().splitlines() for side in ("src", "tgt")]
        for part in ("train", "validation")
    ]
    assert all(len(sources) == len(targets) for sources, targets in written)
    assert all(target == source[::-1] for source, target in zip(*written[1], strict=True))


def test_sources_without_spaces_are_not_lost_for_the_length_of_a_stand_in(tmp_path):
    """Chinese in the pieces of an English vocabulary is one unknown piece."""
    draw = random.Random(1)
    chinese = ["".join(chr(0x4E00 + draw.randrange(40)) for _ in range(30)) for _ in range(120)]
    segmenters = [train_segmenter(lines, 60) for lines in (chinese, random_lines(120, seed=3))]
    write_tokenizer(tmp_path / "teacher", *segmenters)
    tokenizer_of_teacher(tmp_path / "teacher")[0].save_pretrained(tmp_path / "run" / "start")
    (tmp_path / "a.zh").write_text("".join(f"{line}\n" for line in chinese))
    conversion = Conversion("teacher", tmp_path / "run", (str(tmp_path / "a.zh"), None))
    conversion.hold_out()
    stages = {stage.name: stage for stage in conversion.stages()}
    counts = prepare(PreparationArguments(**stages["held_out_data"].options))["pairs"]["train"]
    assert (counts["read"], counts["kept"]) == (6, 6)
    assert stages["sources"].options["max_length_ratio"] == 0
    assert "max_length_ratio" not in stages["data"].options


def test_a_seed_of_0_is_passed_on(tmp_path, teacher, text, monkeypatch):
    begun = []

    def run(runner, stages):
        begun.extend(stages)
        return {stage.name: "stopped" for stage in stages}

    monkeypatch.setattr(StageRunner, "run", run)
    words = ["--teacher", teacher, "--train_source", text[0], "--output", str(tmp_path / "run"), "--seed", "0"]
    convert_teacher.main(words)
    options = {stage.name: stage.options for stage in begun}
    assert (options["start"]["seed"], options["model"]["seed"]) == (0, 0)


def test_a_start_whose_mark_was_lost_is_done_again(tmp_path):
    """As after a kill between the end of `init` and the mark of its stage."""
    tokenizer = tiny_tokenizer()
    for part in (random_teacher(tokenizer), tokenizer):
        part.save_pretrained(tmp_path / "teacher")
    stage = next(Conversion(str(tmp_path / "teacher"), tmp_path / "run", ("a", None)).preparation_stages())
    assert (stage.name, stage.command) == ("start", "init")
    (tmp_path / "run").mkdir()
    for _ in range(2):
        assert StageRunner(tmp_path / "run", threads=1).run([stage]) == {"start": "done"}
        (tmp_path / "run" / "stages" / "start.json").unlink()
    assert "start holds the model of this command: nothing is left to do" in (
        (tmp_path / "run" / "logs" / "start.log").read_text()
    )


def test_source_text_alone_makes_a_scored_student(tmp_path, teacher, text, capsys):
    """The whole run with the real commands, for a multilingual teacher; a second call has nothing left to do."""
    (tmp_path / "few.yaml").write_text("training: {max_tokens: 200, save_steps: 4}")
    words = ["--teacher", teacher, "--train_source", text[0], "--output", str(tmp_path / "run"), "--max_steps", "4"]
    words += ["--language_code", ">>eng<<", "--decoder_layers", "1", "--preset", str(tmp_path / "few.yaml")]
    words += ["--latency_sentences", "2", "--num_length_candidates", "2", "--jobs", "2"]
    convert_teacher.main(words)
    output = capsys.readouterr().out
    last = json.loads(output.splitlines()[-1])
    assert last["finished"]
    assert "scored against the teacher's own translations" in output
    rows = {(row["model"], row["decoding"]): row for row in last["results"]}
    students = [("student", f"k = {passes}") for passes in (1, 4, 10)]
    assert list(rows) == [("teacher", "greedy"), ("teacher", "beam 5"), *students]
    assert rows["teacher", "beam 5"]["chrfpp"] > 95  # of what its own beam search made, by CTranslate2
    assert rows["student", "k = 4"]["ms_per_sentence"] > 0
    assert all(key in comparison_table(comparison(tmp_path / "run")) for key in ("teacher", "student", "k = 10"))
    student = JMNatForConditionalGeneration.from_pretrained(last["model"])
    assert len(student.get_decoder().layers) == 1
    assert student.generation_config.num_length_candidates == 2  # tuned
    marks = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "stages").iterdir()}
    convert_teacher.main(words)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == last
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "stages").iterdir()} == marks
