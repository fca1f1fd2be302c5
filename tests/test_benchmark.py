"""The arithmetic of the benchmark by hand, its engines against plain decoding, and one small run of the command."""

import itertools
import json

import pytest
import torch
from teacher_samples import random_lines
from translation_samples import load_script, save_translators

for package in ("onnx", "onnxruntime", "ctranslate2", "sacrebleu"):
    pytest.importorskip(package, reason="the extras `bench` and `train` are not installed")

from modeling_jmnat import benchmark  # noqa: E402
from modeling_jmnat.benchmark import (  # noqa: E402
    TooNoisy,
    add_ratios,
    block_sums,
    interleaved,
    latency_figures,
    length_sorted,
    markdown_table,
    paired_ratio,
    spread,
    throughput_figures,
)
from modeling_jmnat.benchmark_systems import (  # noqa: E402
    CTRANSLATE2_GREEDY,
    REFERENCES,
    SIZES,
    TRANSFORMERS_BEAM,
    System,
    load_engine,
    prepare_student,
    prepare_teacher,
    random_models,
    student_systems,
    teacher_systems,
)
from modeling_jmnat.plots import plot_bleu_against_latency  # noqa: E402


class Clock:
    """Time that engines move on by hand."""

    def __init__(self):
        self.now = 0.0


class FakeEngine:
    def __init__(self, clock, seconds, calls):
        self.clock, self.seconds, self.calls = clock, seconds, calls

    def prepare(self, sources):
        self.clock.now += 100.0  # must not count
        return sources

    def translate(self, batch, options):
        self.calls.append((options["name"], batch))
        self.clock.now += self.seconds * len(batch)
        return batch

    def read(self, output):
        self.clock.now += 1000.0  # must not count
        return [row[::-1] for row in output]


def test_systems_take_turns_and_only_translation_counts(monkeypatch):
    clock, calls = Clock(), []
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock.now)
    systems = [System(name, "torch", name, options={"name": name}) for name in "ab"]
    engines = {system.model_key: FakeEngine(clock, 1.0 + index, calls) for index, system in enumerate(systems)}
    batches = [[[1, 2]], [[3]], [[4, 5, 6]]]
    outputs = {}
    times = interleaved(systems, engines, batches, num_rounds=2, block=2, progress=False, outputs=outputs)
    assert times == {systems[0]: [[1.0] * 3] * 2, systems[1]: [[2.0] * 3] * 2}
    assert outputs[systems[1]] == {0: [[2, 1]], 1: [[3]], 2: [[6, 5, 4]]}
    # Two blocks a round; the one who begins changes with each block and round; the first call of each is a warm-up.
    first, second = [[[1, 2]], [[1, 2]], [[3]]], [[[4, 5, 6]], [[4, 5, 6]]]
    expected = [("a", first), ("b", first), ("b", second), ("a", second)]  # first round
    expected += [("b", first), ("a", first), ("a", second), ("b", second)]  # second
    assert calls == [(name, batch) for name, block in expected for batch in block]


def test_latency_by_hand():
    # Three sentences of 5, 12 and 40 tokens, in three rounds; the last round was disturbed.
    times = [[0.010, 0.020, 0.030], [0.012, 0.020, 0.034], [0.050, 0.020, 0.050]]
    figures = latency_figures(times, [5, 12, 40])
    assert figures["latency_ms"] == pytest.approx(22.0)  # of 20, 22 and 40
    assert figures["latency_quartiles_ms"] == pytest.approx([21.0, 31.0])
    assert figures["latency_spread"] == pytest.approx(10 / 22)
    assert figures["latency_p50_ms"] == pytest.approx(20.0)  # of 12, 20 and 34
    assert figures["latency_p99_ms"] == pytest.approx(20 + 0.98 * 14)
    by_length = figures["latency_by_source_length_ms"]
    assert by_length == {"1-10": pytest.approx(12.0), "11-15": pytest.approx(20.0), "over 30": pytest.approx(34.0)}


def test_throughput_by_hand():
    figures = throughput_figures([[1.0, 1.0], [1.5, 1.0], [2.0, 2.0]], num_sentences=10, batch_size=5)
    assert figures["sentences_per_second"] == pytest.approx(4.0)  # of 2, 2.5 and 4 seconds
    assert figures["sentences_per_second_quartiles"] == pytest.approx([10 / 3.25, 10 / 2.25])
    assert figures["throughput_ms"] == pytest.approx(250.0)
    assert figures["throughput_spread"] == pytest.approx(0.4)
    assert spread([1.0, 1.0, 1.0]) == 0.0


def test_ratios_are_paired_by_hand():
    # The machine becomes three times slower in the second round, for both systems.
    slow, fast = [[4.0, 6.0], [12.0, 18.0], [4.0, 7.0]], [[2.0, 2.0], [6.0, 6.0], [2.0, 2.0]]
    value, found = paired_ratio(slow, fast)
    assert value == 2.5  # of 2, 3, 2, 3, 2 and 3.5
    assert found == pytest.approx((2.625 - 2.5) / 2.5)  # of 2.5, 2.5 and 2.75
    with pytest.raises(TooNoisy, match="need 3 rounds, which 2"):
        paired_ratio(slow[:2], fast[:2])
    with pytest.raises(TooNoisy, match="differ by 50%"):
        paired_ratio([[1.0], [2.0], [3.0]], [[1.0], [1.0], [1.0]])
    assert block_sums([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], 2) == [[3.0, 3.0], [9.0, 6.0]]


def row(title, ms):
    figures = {"latency_ms": ms, "latency_quartiles_ms": [ms, ms], "latency_p50_ms": ms, "latency_p99_ms": ms}
    return {"title": title, "sentences_per_second": 1.0, "batch_size": 8, **figures}


def test_noise_refuses_ratios():
    rows = [row(TRANSFORMERS_BEAM, 100.0), row("ours", 8.0), row(CTRANSLATE2_GREEDY, 20.0)]
    steady = {TRANSFORMERS_BEAM: [[10.0]] * 3, "ours": [[0.8]] * 3, CTRANSLATE2_GREEDY: [[2.0]] * 3}
    noisy = steady | {CTRANSLATE2_GREEDY: [[1.0], [2.0], [4.0]]}
    refused = add_ratios(rows, {"latency": noisy, "throughput": steady})
    assert rows[1]["speed_up"] == {TRANSFORMERS_BEAM: pytest.approx(12.5)}
    assert rows[1]["batch_speed_up"] == {TRANSFORMERS_BEAM: pytest.approx(12.5), CTRANSLATE2_GREEDY: 2.5}
    assert rows[2]["speed_up"] == {CTRANSLATE2_GREEDY: 1.0}  # against itself no noise counts
    assert [reason.split(":")[0] for reason in refused] == [
        f"latency of {CTRANSLATE2_GREEDY} against {TRANSFORMERS_BEAM}",
        f"latency of {TRANSFORMERS_BEAM} against {CTRANSLATE2_GREEDY}",
        f"latency of ours against {CTRANSLATE2_GREEDY}",
    ]
    lines = markdown_table(rows).splitlines()
    assert lines[3].startswith("| ours | 8.0 (8.0-8.0) | 8.0 | 8.0 | 12.50 | too noisy |")
    assert len({line.count("|") for line in lines}) == 1


def test_batches_are_sorted_by_length():
    sources = [[0] * length for length in (3, 1, 2, 5, 4)]
    assert length_sorted(sources, 2) == [[1, 2], [0, 4], [3]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = save_translators(tmp_path_factory.mktemp("models"))
    prepare_student(folder / "student")
    prepare_teacher(folder / "teacher")
    return folder


def text(ids):
    """Ids before `</s>` or padding."""
    return list(itertools.takewhile(lambda token: token not in (1, 2), ids))


def test_engines_translate_alike(folder):
    """Float32 engines of one model and search agree, by the batch and alone."""
    systems = teacher_systems(str(folder / "teacher"))
    systems += student_systems(str(folder / "student"), {"k = 3": {"num_iterations": 3}}, [1, 3])
    assert len({system.title for system in systems}) == len(systems) == 6 + 6
    assert set(REFERENCES) < {system.title for system in systems}
    generator = torch.Generator().manual_seed(0)
    sources = [torch.randint(5, 300, (n,), generator=generator).tolist() + [2] for n in (3, 7, 7, 12)]
    found: dict = {}
    for system in systems:
        engine = load_engine(system, 1)
        together = engine.read(engine.translate(engine.prepare(sources), system.options))
        alone = [engine.read(engine.translate(engine.prepare([source]), system.options))[0] for source in sources]
        together, alone = ([text(ids) for ids in rows] for rows in (together, alone))
        if not system.int8:
            search = system.title.split(",", 1)[1]
            found.setdefault((system.engine in ("torch", "onnx"), search), []).append(alone)
        if system.engine == "onnx" and not system.int8:
            assert together == alone
        assert len(together) == 4
    assert len(found) == 4
    for one, other in found.values():
        assert one == other


def test_random_weights_run_at_a_fixed_length(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "tiny", {"d_model": 16, "ffn": 32, "layers": 1, "heads": 2, "vocab_size": 200})
    config = random_models("tiny", tmp_path)
    prepare_student(tmp_path / "student")
    prepare_teacher(tmp_path / "teacher")
    systems = teacher_systems(str(tmp_path / "teacher"), length=6)
    systems += student_systems(str(tmp_path / "student"), {"k = 2": {"num_iterations": 2}}, [1], length=6)
    sources = [[7, 8, 9, config.eos_token_id]] * 2
    for system in systems:
        engine = load_engine(system, 1)
        output = engine.translate(engine.prepare(sources), system.options)
        if system.engine in ("torch", "onnx"):
            assert output.lengths.tolist() == [6, 6]
        elif system.engine == "transformers":
            assert output.shape == (2, 1 + 6)
        else:
            assert [len(ids) for ids in engine.read(output)] == [6, 6]
    with pytest.raises(ValueError, match="random_weights='huge' is not one of small, base"):
        random_models("huge", tmp_path)


@pytest.mark.slow
def test_the_command(folder, tmp_path, capsys):
    lines = [line for line in random_lines(12, seed=9) if line.strip()]
    for name in ("source", "reference"):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    output = tmp_path / "figures"
    arguments = ["--output", str(output), "--student", str(folder / "student"), "--teacher", str(folder / "teacher")]
    arguments += ["--source", str(tmp_path / "source"), "--reference", str(tmp_path / "reference")]
    arguments += [
        "--passes",
        "1",
        "2",
        "--candidates",
        "1",
        "--sentences",
        "3",
        "--rounds",
        "2",
        "--batch_rounds",
        "1",
    ]
    load_script("benchmark").main([*arguments, "--batch_size", "5", "--only", "int8, greedy|ONNX, C"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = json.loads((output / "rows.json").read_text())
    assert figures["systems"] == len(rows) == 3
    assert [row["title"] for row in rows] == [
        CTRANSLATE2_GREEDY,
        "JM-NAT ONNX, C = 1, k = 1",
        "JM-NAT ONNX, C = 1, k = 2",
    ]
    for found in rows:
        assert 0 < found["latency_quartiles_ms"][0] <= found["latency_ms"] <= found["latency_p99_ms"] * 3
        assert 0 <= found["bleu"] <= 100
        assert found["load_seconds"] > 0
        assert found["peak_memory_mb"] > 0
    assert json.loads((output / "environment.json").read_text())["threads"] == 1
    assert (output / "table.md").read_text().count("\n") == 2 + 3
    assert (output / "bleu_latency.png").stat().st_size > 1000
    assert plot_bleu_against_latency(rows, tmp_path / "again.png") == {"systems": 2, "points": 3}


def test_rules_that_read_probabilities_need_trained_weights(tmp_path):
    script = load_script("benchmark")
    arguments = script.BenchmarkArguments(output=str(tmp_path), passes=[1, 4, 10])
    plain = {f"k = {passes}": {"num_iterations": passes} for passes in (1, 4, 10)}
    assert script.settings(arguments, trained=False) == plain
    assert script.settings(arguments, trained=True) == plain | {
        "k = 4, pruned": {"num_iterations": 4, "prune_candidates": 3},
        "k = 10, pruned": {"num_iterations": 10, "prune_candidates": 7},
        "k = 10, adaptive": {"num_iterations": 10, "confidence_threshold": 0.7},
    }
    systems = student_systems("x", script.settings(arguments, trained=True), [1, 4])
    assert sum("pruned" in system.label for system in systems) == 2 * 3  # one candidate cannot be pruned


def test_missing_arguments_are_named(tmp_path, capsys):
    for wrong, message in (
        (["--student", "x"], "teacher is missing"),
        (["--rounds", "0"], "rounds=0 must be at least 1"),
        (["--random_weights", "huge"], "is not one of small, base"),
    ):
        with pytest.raises(SystemExit):
            load_script("benchmark").main(["--output", str(tmp_path), *wrong])
        assert message in capsys.readouterr().err
