"""Pictures: every logged figure becomes a line with the right points, axes carry units, mistakes have a sentence."""

import json

import pytest
from matplotlib.figure import Figure
from translation_samples import load_script

from modeling_jmnat import plots
from modeling_jmnat.plots import COLOURS, plot_bleu_against_latency, plot_learning_curve, read_log_history, series

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def history():
    rows = []
    for step in range(10, 101, 10):
        parts = {"nll_loss": 5.0 - step / 50, "encoder_loss": 0.5, "ngram_loss": 0.4, "length_loss": 3.0}
        rows.append({"step": step, "train_minutes": step / 20, "loss": 6.0 - step / 50, "grad_norm": 1.0, **parts})
    for step in (50, 100):
        bleu = {"eval_bleu": step / 5, "eval_bleu_k1": step / 10, "eval_bleu_k4": step / 5}
        rows.append({"step": step, "train_minutes": step / 20, "eval_loss": 3.4, **bleu})
    return rows


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, still open for questions."""
    figures = []
    original = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: figures.append(self) or original(self, *args, **kwargs)
    )
    return figures


def test_last_value_of_a_step_counts():
    rows = [{"step": 2, "loss": 1.0}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 3, "eval_loss": 9}]
    assert series(rows, "loss") == ([1, 2], [3.0, 2.0])


@pytest.mark.parametrize(("axis", "unit", "last"), [("step", "updates", 100), ("train_minutes", "minutes", 5)])
def test_learning_curve_shows_every_part_and_every_bleu(history, tmp_path, drawn, axis, unit, last):
    figures = plot_learning_curve(history, tmp_path / "curve.png", axis)
    assert (tmp_path / "curve.png").read_bytes().startswith(PNG)
    losses, bleu = drawn[0].axes
    lines = {line.get_label(): line for line in losses.get_lines()}
    assert set(lines) == set(plots.LOSS_NAMES.values())
    assert lines["target tokens"].get_ydata().tolist() == [5.0 - step / 50 for step in range(10, 101, 10)]
    assert {line.get_label(): line.get_ydata().tolist() for line in bleu.get_lines()} == {
        "1 pass": [5.0, 10.0],
        "4 passes": [10.0, 20.0],
    }
    assert all(line.get_xdata()[-1] == last for panel in (losses, bleu) for line in panel.get_lines())
    for panel in (losses, bleu):
        assert unit in panel.get_xlabel()
        colours = [line.get_color() for line in panel.get_lines()]
        marks = [line.get_marker() for line in panel.get_lines()]
        assert len(set(colours)) == len(set(marks)) == len(colours)
        assert set(colours) <= set(COLOURS)
    assert "nats per masked target token" in losses.get_ylabel()
    assert "BLEU" in bleu.get_ylabel()
    assert figures["nll_loss"] == 3.0
    assert figures["best_eval_bleu_k4"] == 20.0


def test_a_run_without_validation_has_one_panel(history, tmp_path, drawn):
    plot_learning_curve([row for row in history if "loss" in row], tmp_path / "curve.png")
    assert len(drawn[0].axes) == 1


def test_bleu_against_latency_joins_the_points_of_a_system(tmp_path, drawn):
    rows = [
        {"system": "JM-NAT", "bleu": 33.0, "latency_ms": 30.0, "label": "k = 10"},
        {"system": "JM-NAT", "bleu": 29.0, "latency_ms": 6.0},
        {"system": "teacher", "bleu": 36.0, "latency_ms": 110},
    ]
    assert plot_bleu_against_latency(rows, tmp_path / "plot.png") == {"systems": 2, "points": 3}
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)
    (panel,) = drawn[0].axes
    points = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in panel.get_lines()}
    assert points == {"JM-NAT": ([6.0, 30.0], [29.0, 33.0]), "teacher": ([110], [36.0])}
    assert [text.get_text() for text in panel.texts] == ["k = 10"]
    assert "milliseconds per sentence" in panel.get_xlabel()


def test_newest_checkpoint_of_a_run_is_read(history, tmp_path):
    for number, rows in ((1, history[:3]), (2, history)):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": number, "log_history": rows}))
    assert read_log_history(tmp_path) == history
    assert read_log_history(tmp_path / "checkpoint-1" / "trainer_state.json") == history[:3]


def test_command_draws_and_says_what_is_wrong(history, tmp_path, capsys):
    main = load_script("plot").main
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    rows, bad, empty = (tmp_path / f"{name}.json" for name in ("rows", "bad", "empty"))
    rows.write_text(json.dumps([{"system": "a", "bleu": 1.5, "latency_ms": 2}]))
    bad.write_text(json.dumps([{"system": "a", "bleu": 1.5, "latency_ms": 2}, {"system": "a", "bleu": 1.5}]))
    empty.write_text("{}")
    picture = str(tmp_path / "picture.png")
    main(["--run", str(tmp_path / "run"), "--output", picture])
    assert json.loads(capsys.readouterr().out)["best_eval_bleu_k4"] == 20.0
    main(["--latency", str(rows), str(rows), "--output", picture])
    assert json.loads(capsys.readouterr().out) == {"output": picture, "systems": 1, "points": 2}
    before = (tmp_path / "picture.png").read_bytes()
    for arguments, sentence in (
        ([], "give either --run or --latency"),
        (["--run", str(tmp_path / "run"), "--latency", str(rows)], "give either --run or --latency"),
        (["--run", str(tmp_path)], "holds no trainer_state.json"),
        (["--run", str(empty)], "has no log_history"),
        (["--run", str(tmp_path / "run"), "--axis", "week"], "axis='week' is not one of step, train_minutes"),
        (["--latency", str(bad)], "row 2 needs system, bleu and latency_ms"),
        (["--latency", str(empty)], "must hold a list of rows"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, "--output", picture])
        assert stopped.value.code == 1
        assert sentence in capsys.readouterr().err
    assert (tmp_path / "picture.png").read_bytes() == before
