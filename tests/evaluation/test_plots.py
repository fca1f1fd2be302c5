"""Pictures: every logged figure becomes a line with the right points, axes have units, mistakes get a sentence."""

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from modeling_jmnat.evaluation import plots
from modeling_jmnat.evaluation.evaluation_plots import MIN_SENTENCES, plot_bleu_by_length, plot_bleu_under_noise
from modeling_jmnat.evaluation.plots import (
    COLOURS,
    plot_bleu_against_latency,
    plot_learning_curve,
    read_log_history,
    series,
)
from tests.helpers.translation_samples import load_script

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def history():
    rows = []
    for step in range(10, 101, 10):
        parts = {"nll_loss": 5.0 - step / 50, "encoder_loss": 0.5, "ngram_loss": 0.4, "length_loss": 3.0}
        rows.append({"step": step, "loss": 6.0 - step / 50, "grad_norm": 1.0, **parts})
    for step in (50, 100):
        bleu = {"eval_bleu": step / 5, "eval_bleu_k1": step / 10, "eval_bleu_k4": step / 5}
        rows.append({"step": step, "eval_loss": 3.4, **bleu})
    return rows


@pytest.fixture
def drawn(monkeypatch):
    """The saved figures as objects, for inspection."""
    figures = []
    original = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **kwargs: figures.append(self) or original(self, *args, **kwargs)
    )
    return figures


def test_last_value_of_a_step_counts():
    rows = [{"step": 2, "loss": 1.0}, {"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 3, "eval_loss": 9}]
    assert series(rows, "loss") == ([1, 2], [3.0, 2.0])


def test_learning_curve_shows_every_part_and_every_bleu(history, tmp_path, drawn):
    figures = plot_learning_curve(history, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(PNG)
    losses, bleu = drawn[0].axes
    lines = {line.get_label(): line for line in losses.get_lines()}
    assert set(lines) == set(plots.LOSS_NAMES.values())
    assert lines["target tokens"].get_ydata().tolist() == [5.0 - step / 50 for step in range(10, 101, 10)]
    assert {line.get_label(): line.get_ydata().tolist() for line in bleu.get_lines()} == {
        "1 pass": [5.0, 10.0],
        "4 passes": [10.0, 20.0],
    }
    assert all(line.get_xdata()[-1] == 100 for panel in (losses, bleu) for line in panel.get_lines())
    for panel in (losses, bleu):
        assert "updates" in panel.get_xlabel()
        colours = [line.get_color() for line in panel.get_lines()]
        marks = [line.get_marker() for line in panel.get_lines()]
        assert len(set(colours)) == len(set(marks)) == len(colours)
        assert set(colours) <= set(COLOURS)
    assert "nats per masked target token" in losses.get_ylabel()
    assert "BLEU" in bleu.get_ylabel()
    assert figures["nll_loss"] == 3.0
    assert figures["best_eval_bleu_k4"] == 20.0


def test_beams_of_a_teacher_stand_in_the_legend(tmp_path, drawn):
    """A label that begins with an underscore is hidden."""
    bleu = {"eval_bleu": 30.0, "eval_bleu_beam1": 29.0, "eval_bleu_beam5": 30.0}
    plot_learning_curve([{"step": 10, **bleu}, {"step": 10, "loss": 1.0}], tmp_path / "curve.png")
    assert [text.get_text() for text in drawn[0].axes[1].get_legend().get_texts()] == ["beam 1", "beam 5"]


def test_a_run_without_validation_has_one_panel(history, tmp_path, drawn):
    plot_learning_curve([row for row in history if "loss" in row], tmp_path / "curve.png")
    assert len(drawn[0].axes) == 1


def test_bleu_against_latency_joins_the_points_of_a_system(tmp_path, drawn):
    rows = [
        {"system": "JM-NAT", "bleu": 33.0, "latency_ms": 30.0, "label": "k = 10"},
        {"system": "JM-NAT", "bleu": 29.0, "latency_ms": 6.0},
        {"system": "teacher", "bleu": 36.0, "latency_ms": 110},
    ]
    found = plot_bleu_against_latency(rows, tmp_path / "plot.png")
    assert (found["systems"], found["points"]) == (2, 3)
    assert [rows[index]["bleu"] for index in found["front"]] == [29.0, 33.0, 36.0]
    assert (tmp_path / "plot.png").read_bytes().startswith(PNG)
    (panel,) = drawn[0].axes
    points = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in panel.get_lines()}
    front = points.pop("Pareto front")
    assert front == ([6.0, 30.0, 110], [29.0, 33.0, 36.0])
    assert points == {"JM-NAT": ([6.0, 30.0], [29.0, 33.0]), "teacher": ([110], [36.0])}
    assert [text.get_text() for text in panel.texts] == ["k = 10"]
    assert panel.texts[0].xy == (30.0, 33.0)
    assert "milliseconds per sentence" in panel.get_xlabel()
    assert panel.get_xscale() == "log"


def test_what_is_slower_and_no_better_is_not_on_the_front():
    figures = [(9.0, 33.0), (3.0, 30.0), (4.0, 30.0), (4.0, 29.0), (3.0, 31.0), (12.0, 32.0), (20.0, 40.0)]
    rows = [{"latency_ms": latency, "bleu": bleu} for latency, bleu in figures]
    assert plots.pareto_front(rows) == [4, 0, 6]
    assert plots.pareto_front([]) == []


def test_intervals_are_drawn_in_both_directions(tmp_path, drawn):
    row = {"system": "a", "bleu": 30.0, "latency_ms": 20.0}
    rows = [row | {"bleu_interval": [28.5, 31.0], "latency_quartiles_ms": [19.0, 24.0]}, row | {"latency_ms": 40.0}]
    plot_bleu_against_latency(rows, tmp_path / "plot.png")
    (panel,) = drawn[0].axes
    bars = [segment.tolist() for lines in panel.collections for segment in lines.get_segments()]
    assert bars == [[[19.0, 30.0], [24.0, 30.0]], [[20.0, 28.5], [20.0, 31.0]]]


def test_labels_of_close_points_lie_apart(tmp_path, drawn):
    names = ("a", "b", "c", "d")
    rows = [{"system": name, "bleu": 30.0, "latency_ms": 20.0, "label": name} for name in names]
    rows.append({"system": "far", "bleu": 20.0, "latency_ms": 90.0, "label": "e"})
    plot_bleu_against_latency(rows, tmp_path / "plot.png")
    places = [text.xyann for text in drawn[0].axes[0].texts]
    assert len(set(places[:4])) == 4
    assert places[4] == places[0]


def test_no_legend_lies_on_the_points(history, tmp_path, drawn):
    rows = [{"system": f"system {x}", "bleu": 30.0 + x, "latency_ms": 2.0**x, "label": "k = 1"} for x in range(12)]
    plot_bleu_against_latency(rows, tmp_path / "latency.png")
    plot_learning_curve(history, tmp_path / "curve.png")
    for figure in drawn:
        for panel in figure.axes:
            assert not panel.get_legend().get_window_extent().overlaps(panel.get_window_extent())
    lines = [line for line in drawn[0].axes[0].get_lines() if line.get_label().startswith("system")]
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}) == 12


def test_no_legend_squeezes_its_panel(tmp_path, drawn):
    long = {f"a name of as many as fifty letters and more, no. {n}": ([0, 1], [n, 2]) for n in range(3)}
    middling = {f"of twenty-three letters {n}": ([0, 1], [n, 2]) for n in range(3)}
    plots.plot_lines([plots.Panel("x", "y", long), plots.Panel("x", "z", middling)], tmp_path / "lines.png")
    (figure,) = drawn
    for panel in figure.axes:
        assert panel.get_position().width > 0.35  # of two side by side
        assert not panel.get_legend().get_window_extent().overlaps(panel.get_window_extent())


def write_report(path, rows, **settings):
    settings = {"model": "jm", "source": "test.de", "sentences": 1000, "noise": None, "reranker": None, **settings}
    path.write_text(json.dumps({"settings": settings, "results": rows}))
    return path


def groups(*scores, counts=(30, 500, 19)):
    names = ("1-5", "6-10", "over 10")
    return {n: {"sentences": c, "sacrebleu": s} for n, c, s in zip(names, counts, scores, strict=True)}


def test_bleu_by_length_has_a_line_for_each_row_and_a_panel_for_each_test_set(tmp_path, drawn):
    student = [{"num_iterations": k, "by_source_words": groups(30.0 + k, 20.0 + k, 99.0)} for k in (1, 4)]
    teacher = [{"num_beams": beams, "by_source_words": groups(35.0, 33.0, 99.0)} for beams in (1, 5)]
    paths = [
        write_report(tmp_path / "student.json", student),
        write_report(tmp_path / "reranked.json", student[:1], reranker="teacher"),
        write_report(tmp_path / "teacher.json", teacher, model="teacher"),
        write_report(tmp_path / "other.json", student[:1], source="other.de"),
    ]
    assert plot_bleu_by_length(paths, tmp_path / "lengths.png") == {"panels": 2, "lines": 6}
    first, second = drawn[0].axes
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in first.get_lines()}
    assert lines == {  # 19 sentences are too few to be drawn
        "jm, k = 1": ([0, 1], [31.0, 21.0]),
        "jm, k = 4": ([0, 1], [34.0, 24.0]),
        "jm, k = 1, reranked": ([0, 1], [31.0, 21.0]),
        "teacher, greedy": ([0, 1], [35.0, 33.0]),
        "teacher, beam 5": ([0, 1], [35.0, 33.0]),
    }
    assert [tick.get_text() for tick in first.get_xticklabels()] == ["1–5\nn = 30", "6–10\nn = 500"]
    assert "words per source sentence (test.de" in first.get_xlabel()
    assert "other.de" in second.get_xlabel()
    assert "BLEU" in first.get_ylabel()
    assert first.get_ylim() == second.get_ylim()


def test_models_of_one_name_are_told_apart_by_their_files(tmp_path, drawn, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"num_iterations": 1, "noise_level": 0.0, "sacrebleu": 30.0, "by_source_words": groups(31.0, 21.0, 9.0)}]
    other = [{**rows[0], "sacrebleu": 20.0, "by_source_words": {"1-5": {"sentences": 30, "sacrebleu": 11.0}}}]
    Path("old").mkdir()
    files = [Path("first.json"), Path("old/second.json"), Path("teacher.json")]
    paths = [
        write_report(files[0], rows, noise="drop"),
        write_report(files[1], other, noise="drop"),
        write_report(files[2], rows, noise="drop", model="teacher"),
    ]
    plot_bleu_by_length(paths, tmp_path / "lengths.png")
    plot_bleu_under_noise(paths, tmp_path / "noise.png")
    lengths, noise = [{line.get_label(): line for line in figure.axes[0].get_lines()} for figure in drawn]
    assert set(lengths) == set(noise) == {"jm, k = 1 (first)", "jm, k = 1 (second)", "teacher, k = 1"}
    assert noise["jm, k = 1 (second)"].get_xydata().tolist() == [[0.0, 20.0]]
    assert lengths["jm, k = 1 (second)"].get_xydata().tolist() == [[0.0, 11.0]]  # it has no longer sentences
    files[1].rename("old/first.json")
    plot_bleu_under_noise(["first.json", "old/first.json"], tmp_path / "noise.png")
    names = [line.get_label() for line in drawn[-1].axes[0].get_lines()]
    assert names == ["jm, k = 1 (first.json)", "jm, k = 1 (old/first.json)"]


def test_bleu_under_noise_has_a_panel_for_each_kind(tmp_path, drawn):
    rows = [{"num_iterations": 4, "noise_level": level, "sacrebleu": 30 - 100 * level} for level in (0.1, 0.0)]
    paths = [
        write_report(tmp_path / "drop.json", rows, noise="drop"),
        write_report(tmp_path / "drop_cm.json", rows, noise="drop", model="cm"),
        write_report(tmp_path / "output.json", rows, noise="encoder_output"),
    ]
    assert plot_bleu_under_noise(paths, tmp_path / "noise.png") == {"panels": 2, "lines": 3}
    dropped, states = drawn[0].axes
    assert [line.get_label() for line in dropped.get_lines()] == ["jm, k = 4", "cm, k = 4"]
    assert dropped.get_lines()[0].get_xydata().tolist() == [[0.0, 30.0], [10.0, 20.0]]
    assert dropped.get_xlabel() == "source words dropped (%)"
    assert "encoder output" in states.get_xlabel()
    assert (tmp_path / "noise.png").read_bytes().startswith(PNG)


def test_bleu_under_noise_has_a_panel_for_each_text(tmp_path, drawn):
    rows = [{"num_iterations": 4, "noise_level": 0.1, "sacrebleu": 30.0}]
    texts = {"a": {}, "b": {"source": "other.de"}}
    paths = [write_report(tmp_path / f"{name}.json", rows, noise="drop", **text) for name, text in texts.items()]
    assert plot_bleu_under_noise(paths, tmp_path / "noise.png") == {"panels": 2, "lines": 2}
    labels = [axis.get_xlabel() for axis in drawn[0].axes]
    assert labels == ["source words dropped (%), test.de", "source words dropped (%), other.de"]


def test_rows_under_noise_stay_apart_by_length(tmp_path, drawn):
    rows = [
        {"num_iterations": 4, "noise_level": level, "by_source_words": groups(30.0 - level, 20.0, 9.0)}
        for level in (0.0, 0.1)
    ]
    plot_bleu_by_length([write_report(tmp_path / "a.json", rows, noise="drop")], tmp_path / "lengths.png")
    lines = {line.get_label(): list(line.get_ydata()) for line in drawn[0].axes[0].get_lines()}
    assert lines == {"jm, k = 4": [30.0, 20.0], "jm, k = 4, noise 0.1": [29.9, 20.0]}


@pytest.mark.parametrize(
    ("setting", "value"), [("lowercase", True), ("reference", "corrected.en"), ("bleu_tokenize", "intl")]
)
def test_scores_of_different_kinds_share_no_panel(setting, value, tmp_path):
    rows = [{"num_iterations": 4, "noise_level": 0.1, "sacrebleu": 30.0, "by_source_words": groups(30.0, 20.0, 9.0)}]
    shared = {"noise": "drop", "reference": "test.en", "lowercase": False, "bleu_tokenize": None}
    first = write_report(tmp_path / "first.json", rows, **shared)
    packed = write_report(tmp_path / "packed.json", rows, **shared | {"reference": "test.en.gz"})
    second = write_report(tmp_path / "second.json", rows, **shared | {setting: value})
    for plot in (plot_bleu_by_length, plot_bleu_under_noise):
        plot([first, packed], tmp_path / "a.png")
        with pytest.raises(
            ValueError, match=f"first.json and .*second.json cannot be compared, their {setting} is .*{value}"
        ):
            plot([first, second], tmp_path / "b.png")
    assert not (tmp_path / "b.png").exists()


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
    assert json.loads(capsys.readouterr().out) == {"output": picture, "systems": 1, "points": 2, "front": [0]}
    old = write_report(tmp_path / "old.json", [{"num_iterations": 1, "sacrebleu": 3.0}])
    few = write_report(
        tmp_path / "few.json", [{"num_iterations": 1, "by_source_words": groups(1, 2, 3, counts=[9] * 3)}]
    )
    lengths = write_report(tmp_path / "new.json", [{"num_iterations": 1, "by_source_words": groups(1, 2, 3)}])
    main(["--lengths", str(lengths), "--output", picture])
    assert json.loads(capsys.readouterr().out) == {"output": picture, "panels": 1, "lines": 1}
    chrf = write_report(tmp_path / "chrf.json", [{"num_iterations": 1, "noise_level": 0.1, "chrf": 3.0}], noise="drop")
    before = (tmp_path / "picture.png").read_bytes()
    for arguments, sentence in (
        (["--noise", str(chrf)], "has no sacrebleu: run `jmnat evaluate` with sacrebleu among its --metrics"),
        ([], "give exactly one of --run, --latency, --lengths and --noise"),
        (["--run", str(tmp_path / "run"), "--latency", str(rows)], "give exactly one of --run, --latency"),
        (["--lengths", str(rows)], "was not written by `jmnat evaluate"),
        (["--lengths", str(old)], "has no by_source_words: run `jmnat evaluate` again"),
        (["--noise", str(old)], "has no noise_level: run `jmnat evaluate` with --noise"),
        (["--lengths", str(few)], f"has {MIN_SENTENCES} sentences, use a longer test set"),
        (["--run", str(tmp_path)], "holds no trainer_state.json"),
        (["--run", str(empty)], "has no log_history"),
        (["--latency", str(bad)], "row 2 needs system, bleu and latency_ms"),
        (["--latency", str(empty)], "must hold a list of rows"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*arguments, "--output", picture])
        assert stopped.value.code == 1
        assert sentence in capsys.readouterr().err
    assert (tmp_path / "picture.png").read_bytes() == before
