"""The arithmetic of the benchmark by hand, its engines against plain decoding, and one small run of the command."""

import importlib.util
import itertools
import json
import os
import signal
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.helpers.teacher_samples import random_lines
from tests.helpers.translation_samples import load_script, save_translators, tiny_tokenizer

for package in ("onnx", "onnxscript", "onnxruntime", "ctranslate2", "sacrebleu"):
    pytest.importorskip(package, reason="the extras `bench` and `train` are not installed")

from modeling_jmnat.benchmark import cpu_run, gpu_run  # noqa: E402
from modeling_jmnat.benchmark import run as benchmark_run  # noqa: E402
from modeling_jmnat.benchmark import systems as benchmark_systems  # noqa: E402
from modeling_jmnat.benchmark import timing as benchmark  # noqa: E402
from modeling_jmnat.benchmark.gpu import gpu_table  # noqa: E402
from modeling_jmnat.benchmark.models import copy_models  # noqa: E402
from modeling_jmnat.benchmark.onnx_profile import PARTS, read_events  # noqa: E402
from modeling_jmnat.benchmark.options import SIZES, BenchmarkArguments  # noqa: E402
from modeling_jmnat.benchmark.run import Benchmark, Plan  # noqa: E402
from modeling_jmnat.benchmark.systems import (  # noqa: E402
    CTRANSLATE2_GREEDY,
    REFERENCES,
    TRANSFORMERS_BEAM,
    System,
    installed,
    load_engine,
    load_search,
    prepare_student,
    prepare_teacher,
    random_models,
    student_systems,
    teacher_systems,
)
from modeling_jmnat.benchmark.text import scored_text  # noqa: E402
from modeling_jmnat.benchmark.timing import (  # noqa: E402
    TooNoisy,
    add_ratios,
    block_sums,
    describe_refused,
    interleaved,
    latency_figures,
    length_sorted,
    length_table,
    markdown_table,
    paired_ratio,
    spread,
    throughput_figures,
)
from modeling_jmnat.evaluation.plots import plot_bleu_against_latency  # noqa: E402
from modeling_jmnat.utils.bleu import corpus_bleu  # noqa: E402
from modeling_jmnat.utils.text_files import read_lines  # noqa: E402


class Clock:
    """A clock that the engines advance by hand."""

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
    times = interleaved(systems, engines, batches, block=2, progress=False, outputs=outputs)
    assert times == {systems[0]: [1.0] * 3, systems[1]: [2.0] * 3}
    assert interleaved(systems, engines, batches, block=2, progress=False, turn=1) == times
    assert outputs[systems[1]] == {0: [[2, 1]], 1: [[3]], 2: [[6, 5, 4]]}
    # Two blocks a round; the one who begins changes with each block and round; the first call of each is a warm-up.
    first, second = [[[1, 2]], [[1, 2]], [[3]]], [[[4, 5, 6]], [[4, 5, 6]]]
    expected = [("a", first), ("b", first), ("b", second), ("a", second)]  # first round
    expected += [("b", first), ("a", first), ("a", second), ("b", second)]  # second
    assert calls == [(name, batch) for name, block in expected for batch in block]
    calls.clear()
    interleaved(systems, engines, batches, block=1, progress=False)  # one warm-up of each
    expected = [("a", 0), ("a", 0), ("b", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]
    assert calls == [(name, batches[number]) for name, number in expected]


def test_latency_by_hand():
    # Three sentences of 5, 12 and 40 tokens, in three rounds; the last round was disturbed.
    times = [[0.010, 0.020, 0.030], [0.012, 0.020, 0.034], [0.050, 0.020, 0.050]]
    figures = latency_figures(times, [5, 12, 40])
    assert figures["latency_ms"] == pytest.approx(22.0)  # of 20, 22 and 40
    assert figures["latency_quartiles_ms"] == pytest.approx([21.0, 31.0])
    assert figures["latency_spread"] == pytest.approx(20 / 22)
    assert figures["latency_p50_ms"] == pytest.approx(20.0)  # of all nine
    assert figures["latency_p99_ms"] == pytest.approx(50.0)
    by_length = figures["latency_by_source_length_ms"]
    table = length_table([{"title": "a", **figures}, {"title": "b", "latency_by_source_length_ms": {"16-20": 1.5}}])
    assert table.splitlines() == [
        "| source tokens | 1-10 | 11-15 | 16-20 | over 30 |",
        "|---|---|---|---|---|",
        "| a | 12.0 | 20.0 |  | 34.0 |",
        "| b |  |  | 1.5 |  |",
    ]
    assert by_length == {"1-10": pytest.approx(12.0), "11-15": pytest.approx(20.0), "over 30": pytest.approx(34.0)}


def test_p99_is_not_below_the_mean():
    """Another sentence is slow in each round: the mean has all of them, and so has p99."""
    times = [[0.001, 0.001, 0.010], [0.001, 0.010, 0.001], [0.010, 0.001, 0.001]]
    figures = latency_figures(times, [5, 5, 5])
    assert figures["latency_ms"] == pytest.approx(4.0)
    assert figures["latency_p50_ms"] < figures["latency_ms"] < figures["latency_p99_ms"]


def test_throughput_by_hand():
    figures = throughput_figures([[1.0, 1.0], [1.5, 1.0], [2.0, 2.0]], num_sentences=10, batch_size=5)
    assert figures["sentences_per_second"] == pytest.approx(4.0)  # of 2, 2.5 and 4 seconds
    assert figures["sentences_per_second_quartiles"] == pytest.approx([10 / 3.25, 10 / 2.25])
    assert figures["throughput_ms"] == pytest.approx(250.0)
    assert figures["throughput_spread"] == pytest.approx(0.8)
    assert spread([1.0, 1.0, 1.0]) == 0.0


def test_ratios_are_paired_by_hand():
    # The machine becomes three times slower in the second round, for both systems.
    slow, fast = [[4.0, 6.0], [12.0, 18.0], [4.0, 7.0]], [[2.0, 2.0], [6.0, 6.0], [2.0, 2.0]]
    assert paired_ratio(slow, fast) == 2.5  # of 2, 3, 2, 3, 2 and 3.5
    assert spread([2.5, 2.5, 2.75]) == pytest.approx(0.25 / 2.5)  # the medians of its rounds
    with pytest.raises(TooNoisy, match="need 3 rounds that agree, and there are 2"):
        paired_ratio(slow[:2], fast[:2])
    with pytest.raises(TooNoisy, match="differ by 100%"):
        paired_ratio([[1.0], [2.0], [3.0]], [[1.0], [1.0], [1.0]])
    assert block_sums([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], 2) == [[3.0, 3.0], [9.0, 6.0]]


def test_every_one_of_few_rounds_counts():
    """Five rounds with two outliers do not agree, although their quartiles do; more rounds may have a quarter off."""
    few = [0.6, 0.97, 1.0, 1.03, 1.6]
    assert spread(few) == pytest.approx(1.0)
    with pytest.raises(TooNoisy, match="differ by 100%"):
        paired_ratio([[value] for value in few], [[1.0]] * 5)
    many = [0.6, 0.97, 0.98, 1.0, 1.0, 1.0, 1.02, 1.03, 1.6]
    assert spread(many) == pytest.approx(0.04)
    assert paired_ratio([[value] for value in many], [[1.0]] * 9) == 1.0
    for table in (markdown_table([row("a", 1.0)]), gpu_table([row("a", 1.0)])):
        assert "at most 10% of their median: the lowest and the highest of up to\n5 rounds" in table


def row(title, ms):
    figures = {"latency_ms": ms, "latency_quartiles_ms": [ms, ms], "latency_p50_ms": ms, "latency_p99_ms": ms}
    return {"title": title, "sentences_per_second": 1.0, "batch_size": 8, **figures}


def test_time_of_operators_by_hand(tmp_path):
    def event(name, duration, cat="Node", **args):
        return {"name": name, "cat": cat, "dur": duration, "args": args}

    def shapes(inputs, outputs):
        weight = {"float": [7]}
        return {"input_type_shape": [{"float": inputs}, weight], "output_type_shape": [{"float": outputs}]}

    events = [
        event("model_run", 4_000_000, "Session"),
        event("model_run", 1_000_000, "Session"),
        event("pass_a_kernel_time", 1_500_000, op_name="DynamicQuantizeMatMul", **shapes([1, 3, 5], [1, 3, 7])),
        event("pass_b_kernel_time", 500_000, op_name="Gemm", **shapes([2, 5], [2, 7])),
        event("pass_c_kernel_time", 250_000, op_name="Softmax"),
        event("pass_d_kernel_time", 250_000, op_name="Attention"),
        event("pass_e_kernel_time", 125_000, op_name="Add"),
        event("pass_e_fence_before", 9_000_000, op_name="Add"),
        event("f_kernel_time", 1_000_000, op_name="Gemm", **shapes([1, 10], [1, 100])),
        event("g_kernel_time", 3_000_000, op_name="Loop"),
    ]
    (tmp_path / "events.json").write_text(json.dumps(events))
    total, seconds, count = read_events(tmp_path / "events.json", only_passes=False)
    assert total == 5.0
    assert count == 3 * 5 * 7 + 2 * 5 * 7
    assert {name: value for name, value in seconds.items() if value} == {
        "encoder, lengths, choice": 1.0,
        "matrix products": 2.0,
        "best words": 0.25,
        "attention": 0.25,
        "other operators": 0.125,
    }
    _, seconds, count = read_events(tmp_path / "events.json", only_passes=True)
    assert count == 3 * 5 * 7 + 2 * 5 * 7 + 1000
    assert seconds["encoder, lengths, choice"] == 0
    assert seconds["matrix products"] == 3.0


def test_noise_refuses_ratios():
    rows = [row(TRANSFORMERS_BEAM, 100.0), row("ours", 8.0), row(CTRANSLATE2_GREEDY, 20.0)]
    steady = {TRANSFORMERS_BEAM: [[10.0]] * 3, "ours": [[0.8]] * 3, CTRANSLATE2_GREEDY: [[2.0]] * 3}
    noisy = steady | {CTRANSLATE2_GREEDY: [[1.0], [2.0], [4.0]]}
    refused = add_ratios(rows, {"latency": noisy, "throughput": steady})
    assert rows[1]["speed_up"] == {TRANSFORMERS_BEAM: pytest.approx(12.5)}
    assert rows[1]["batch_speed_up"] == {TRANSFORMERS_BEAM: pytest.approx(12.5), CTRANSLATE2_GREEDY: 2.5}
    assert rows[2]["speed_up"] == {CTRANSLATE2_GREEDY: 1.0}  # against itself no noise counts
    assert rows[1]["speed_up_rounds"] == {CTRANSLATE2_GREEDY: [pytest.approx(1.25), pytest.approx(5.0)]}
    assert "batch_speed_up_rounds" not in rows[1]
    few, two_rounds = [row(TRANSFORMERS_BEAM, 100.0)], {TRANSFORMERS_BEAM: steady[TRANSFORMERS_BEAM][:2]}
    assert "need 3 rounds" in add_ratios(few, {"latency": two_rounds, "throughput": {}})[0]
    assert few == [row(TRANSFORMERS_BEAM, 100.0)]
    assert [reason.split(":")[0] for reason in refused] == [
        f"latency of {CTRANSLATE2_GREEDY} against {TRANSFORMERS_BEAM}",
        f"latency of {TRANSFORMERS_BEAM} against {CTRANSLATE2_GREEDY}",
        f"latency of ours against {CTRANSLATE2_GREEDY}",
    ]
    lines = markdown_table(rows).split("\n\n")[0].splitlines()
    assert lines[3].startswith("| ours | 8.0 (8.0-8.0) | 8.0 | 8.0 | 12.50 | too noisy |")
    assert len({line.count("|") for line in lines}) == 1


def test_refused_ratios_are_told_in_one_line():
    assert describe_refused([], "out") == ""
    line = "left out, because the rounds do not agree: refused_ratios in out/environment.json says which\n"
    assert describe_refused(["a"], "out") == f"1 ratio {line}"
    assert describe_refused(["a", "b"], Path("out")) == f"2 ratios {line}"


def ours(candidates, label, bleu):
    name = f"JM-NAT ONNX int8, C = {candidates}"
    return {"system": name, "label": label, "title": f"{name}, {label}", "bleu": bleu}


def test_a_stopped_benchmark_resumes(tmp_path, monkeypatch):
    """Whatever was measured is not measured again, and the figures are those of all rounds."""
    clock, calls = Clock(), []
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock.now)
    engines = {"a": FakeEngine(clock, 1.0, calls), "b": FakeEngine(clock, 2.0, calls)}
    monkeypatch.setattr(benchmark_run, "load_engine", lambda system, threads: engines[system.folder])
    loads = []
    monkeypatch.setattr(
        benchmark_run, "loading_figures", lambda system, *args: loads.append(system.title) or {"load_seconds": 1.0}
    )
    systems = [System(name, "torch", name, options={"name": name}) for name in "ab"]
    sources = [[5] * length for length in (3, 1, 2, 2)]
    plan = Plan(num_sentences=2, num_rounds=3, batch_size=2, batch_lines=3, batch_rounds=3, batch_sizes=(1, 3))

    def make(settings=None, score=lambda translations: {"bleu": float(len(translations))}):
        return Benchmark(systems, sources, plan, tmp_path / "measurements.json", settings or {"k": 1}, score)

    def stop(translations):
        raise KeyboardInterrupt

    first = make(score=stop)
    with pytest.raises(KeyboardInterrupt):
        list(first.run())
    assert first.rows()[0][0]["batch_size"] == 2
    assert len(calls) > 0
    calls.clear()
    again = make()
    assert list(again.run()) == ["loading", "latency", "throughput", "batch sizes", "scores"]
    assert [(name, len(batch)) for name, batch in calls] == [("a", 2), ("a", 2), ("b", 2), ("b", 2)]  # scores alone
    assert loads == ["a", "b"]
    rows, refused = again.rows()
    assert refused == []
    assert [row["latency_ms"] for row in rows] == [pytest.approx(1000.0), pytest.approx(2000.0)]
    assert [row["sentences_per_second"] for row in rows] == [pytest.approx(1.0), pytest.approx(0.5)]
    assert [row["bleu"] for row in rows] == [4.0, 4.0]
    assert {row["best_batch_size"] for row in rows} <= {1, 2, 3}
    assert "| 1.0 at 2 |" in markdown_table(rows)
    with pytest.raises(ValueError, match="measurements with other settings: remove it"):
        make({"k": 2})


def test_measurements_of_an_earlier_version_are_resumed(tmp_path):
    """Their settings named the goals of a table."""
    path = tmp_path / "measurements.json"
    path.write_text('{"settings": {"systems": [], "k": 1, "size": "small"}, "loading": {"a": {}}, "latency": {}}')
    found = Benchmark([], [], Plan(), path, {"k": 1}).found
    assert found == {"settings": {"systems": [], "k": 1}, "loading": {"a": {}}, "latency": {}}


def test_measurements_of_another_machine_are_not_resumed(tmp_path):
    """Their times would be mixed with those of this one, and described as times of this one."""
    path, machine = tmp_path / "measurements.json", {"processor": "AMD EPYC", "versions": {"torch": "2.13"}}
    Benchmark([], [], Plan(), path, {"k": 1}, machine=machine).save()
    assert Benchmark([], [], Plan(), path, {"k": 1}, machine=machine).found["machine"] == machine
    for other, words in (
        (machine | {"processor": "Xeon"}, "this is Xeon with torch 2.13: remove it or name another folder"),
        (machine | {"versions": {"torch": "2.14"}}, "this is AMD EPYC with torch 2.14"),
    ):
        with pytest.raises(ValueError, match=f"was measured on AMD EPYC with torch 2.13, and {words}"):
            Benchmark([], [], Plan(), path, {"k": 1}, machine=other)
    path.write_text('{"settings": {"systems": [], "k": 1}}')  # an earlier version did not note it
    Benchmark([], [], Plan(), path, {"k": 1}, machine=machine)


def test_a_number_of_candidates_given_twice_is_measured_once():
    assert len(student_systems("x", {"k = 1": {"num_iterations": 1}}, [4, 1, 4])) == 3 * 2


def test_systems_without_their_package_are_left_out(monkeypatch):
    systems = teacher_systems("teacher") + student_systems("student", {"k = 1": {"num_iterations": 1}}, [1])
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ctranslate2" else find_spec(name))
    kept, missing = installed(systems)
    assert missing == ["ctranslate2"]
    assert {system.engine for system in kept} == {"transformers", "torch", "onnx"}
    assert len(kept) == 2 + 3


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


def test_figures_of_loading_are_those_of_what_is_loaded(folder):
    settings = {"k = 1": {"num_iterations": 1}, "k = 4": {"num_iterations": 4}}
    settings["k = 4, pruned"] = {"num_iterations": 4, "prune_candidates": 1, "prune_to": 2}
    settings["k = 4, adaptive"] = {"num_iterations": 4, "confidence_threshold": 0.7}
    systems = student_systems(str(folder / "student"), settings, [1, 4])
    loaded = {system.title: system.loaded for system in systems}
    assert set(loaded.values()) == {
        *("JM-NAT PyTorch", "JM-NAT ONNX", "JM-NAT ONNX, encoder, decoder, positions"),
        *("JM-NAT ONNX int8", "JM-NAT ONNX int8, encoder, decoder, positions"),
    }
    assert loaded["JM-NAT ONNX int8, C = 4, k = 4"] == loaded["JM-NAT ONNX int8, C = 1, k = 1"] == "JM-NAT ONNX int8"
    assert loaded["JM-NAT ONNX int8, C = 4, k = 4, pruned"] == "JM-NAT ONNX int8"
    assert loaded["JM-NAT ONNX int8, C = 1, k = 4, adaptive"] == "JM-NAT ONNX int8, encoder, decoder, positions"
    prepare_student(folder / "student")
    for system in systems:
        if system.engine == "onnx":  # nothing is left that the first translation loads
            engine = load_engine(system, 1)
            before = set(vars(engine.model))
            engine.translate(engine.prepare([[5, 2]]), system.options)
            assert set(vars(engine.model)) == before >= {"translator", *system.parts}


def test_loading_is_timed_without_tokenizers(folder, monkeypatch):
    clock, found = Clock(), []
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock.now)
    load_search.cache_clear()
    load_tokenizer = benchmark_systems.load_teacher_tokenizer

    def slow(folder):
        clock.now += 100.0  # must not count
        return load_tokenizer(folder)

    monkeypatch.setattr(benchmark_systems, "load_teacher_tokenizer", slow)
    system = teacher_systems(str(folder / "teacher"))[1]
    connection = SimpleNamespace(send=found.append, close=lambda: None)
    benchmark._load_and_translate(system, [[5, 6, 2]], 1, connection)
    assert clock.now == 100.0
    assert found[0]["load_seconds"] == 0.0


def test_threads_of_ctranslate2_share_a_batch(folder):
    """Workers give the same translations in order, and a single worker gets the batch unchanged."""
    (system,) = [
        found for found in teacher_systems(str(folder / "teacher")) if found.title.endswith("float32, greedy")
    ]
    sources = [[5 + n] * n + [2] for n in (3, 9, 4, 8, 2)]
    found, splits = [], []
    for threads in (1, 2):
        engine = load_engine(system, threads)
        assert engine.translator.num_translators == threads
        translate = engine.translator.translate_batch

        def record(batch, translate=translate, **options):
            splits.append(options["max_batch_size"])
            return translate(batch, **options)

        engine.translator = SimpleNamespace(translate_batch=record)
        batches = [sources, sources[:1]]
        found.append([engine.read(engine.translate(engine.prepare(batch), system.options)) for batch in batches])
    assert found[0] == found[1]
    assert splits == [0, 0, 3, 1]


def test_random_weights_run_at_a_fixed_length(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "tiny", {"d_model": 16, "ffn": 32, "layers": 1, "heads": 2, "vocab_size": 200})
    config = random_models("tiny", tmp_path)
    prepare_student(tmp_path / "student")
    prepare_teacher(tmp_path / "teacher")
    systems = teacher_systems(str(tmp_path / "teacher"), length=6)
    systems += student_systems(str(tmp_path / "student"), {"k = 2": {"num_iterations": 2}}, [1], length=6)
    assert len(systems) == 6 + 3
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
        *("--passes", "1", "2", "--candidates", "1", "--sentences", "3", "--rounds", "2", "--batch_rounds", "1"),
        *("--batch_sizes", "2", "8"),
    ]
    load_script("benchmark").main([*arguments, "--batch_size", "5", "--only", "int8, greedy|ONNX, C.*[12]$"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = json.loads((output / "rows.json").read_text())
    assert figures["systems"] == len(rows) == 3
    assert [row["title"] for row in rows] == [
        CTRANSLATE2_GREEDY,
        "JM-NAT ONNX, C = 1, k = 1",
        "JM-NAT ONNX, C = 1, k = 2",
    ]
    assert {row["best_batch_size"] for row in rows} <= {2, 5, 8}
    assert sorted(path.name for path in output.glob("*.md")) == ["lengths.md", "profile.md", "table.md"]
    for found in rows:
        assert 0 < found["latency_quartiles_ms"][0] <= found["latency_ms"] <= found["latency_p99_ms"] * 3
        assert 0 <= found["bleu_interval"][0] <= found["bleu"] <= found["bleu_interval"][1] <= 100
        texts = read_lines(output / found["translations"])
        assert found["sentences"] == len(texts)
        assert "|case:" in found["signature"]
        assert corpus_bleu(texts, lines) == pytest.approx(found["bleu"])
        assert found["load_seconds"] > 0
        assert found["peak_memory_mb"] > 0
    assert json.loads((output / "environment.json").read_text())["threads"] == 1
    assert (output / "table.md").read_text().count("\n|") == 1 + 3
    table, note = (output / "profile.md").read_text().split("\n\n")
    assert "many small ones are overstated" in note
    assert "between" not in table
    profile = [line.split(" | ") for line in table.splitlines()[2:]]
    assert [line[0] for line in profile] == [f"| {row['title']}" for row in rows[1:]]
    for line in profile:
        shares = [int(cell.strip("%")) for cell in line[1:-4]]
        assert len(shares) == len(PARTS)
        assert min(shares) >= 0
        assert sum(shares) == pytest.approx(100, abs=len(PARTS) / 2)
        assert all(float(cell.strip(" |")) >= 0 for cell in line[-4:])
    assert (output / "bleu_latency.png").stat().st_size > 1000
    drawn = plot_bleu_against_latency(rows, tmp_path / "again.png")
    assert (drawn["systems"], drawn["points"]) == (2, 3)
    assert len({row["translations"] for row in rows}) == 3


def test_rules_that_read_probabilities_need_trained_weights(tmp_path):
    arguments = BenchmarkArguments(output=str(tmp_path), passes=[1, 4, 10])
    plain = {f"k = {passes}": {"num_iterations": passes} for passes in (1, 4, 10)}
    assert cpu_run.settings(arguments, trained=False) == plain
    assert cpu_run.settings(arguments, trained=True) == plain | {
        "k = 4, pruned": {"num_iterations": 4, "prune_candidates": 1, "prune_to": 2},
        "k = 10, pruned": {"num_iterations": 10, "prune_candidates": 1, "prune_to": 2},
        "k = 10, adaptive": {"num_iterations": 10, "confidence_threshold": 0.7},
    }
    systems = student_systems("x", cpu_run.settings(arguments, trained=True), [1, 4])
    assert (
        sum("pruned" in system.label for system in systems) == 2 * 3
    )  # neither one pass nor one candidate can be pruned


def test_the_picture_leaves_rules_out():
    rows = [ours(4, "k = 4", 38.0), ours(4, "k = 4, pruned", 38.0), {"system": "CTranslate2 int8", "label": "beam 5"}]
    assert cpu_run.points(rows) == [rows[0], rows[2]]


def test_missing_arguments_are_named(tmp_path, capsys):
    for wrong, message in (
        (["--student", "x"], "teacher is missing"),
        (["--rounds", "0"], "rounds=0 must be at least 1"),
        (["--passes", "4", "0"], "passes=0 must be at least 1"),
        (["--candidates", "0"], "candidates=0 must be at least 1"),
        (["--batch_lines", "0"], "batch_lines=0 must be at least 1"),
        (["--only", "("], "only='(' must be a regular expression"),
        (["--random_weights", "huge"], "is not one of small, base"),
    ):
        with pytest.raises(SystemExit):
            load_script("benchmark").main(["--output", str(tmp_path), *wrong])
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("script", ["benchmark", "benchmark_gpu"])
def test_models_must_belong_together(script, folder, tmp_path, capsys):
    """Refused before anything is read or written: the texts do not exist."""
    student, teacher, other = str(folder / "student"), str(folder / "teacher"), str(tmp_path / "other")
    copy_models(SimpleNamespace(teacher=teacher), tmp_path, ["teacher"])
    (tmp_path / "teacher").rename(other)
    tiny_tokenizer(vocab_size=290).save_pretrained(other)
    wrong = [
        (["--student", teacher, "--teacher", student], f"--student {teacher} is a m2m_100 model but must be a JM-NAT"),
        (
            ["--student", student, "--teacher", student],
            f"--teacher {student} is a jmnat model but must be autoregressive",
        ),
        (["--student", student, "--teacher", other], f"--teacher {other} has another tokenizer than --student"),
    ]
    if script == "benchmark":
        with_deep = ["--student", student, "--teacher", teacher, "--deep_teacher", other]
        wrong.append((with_deep, f"--deep_teacher {other} has another tokenizer than --student {student}"))
    for models, message in wrong:
        with pytest.raises(SystemExit):
            load_script(script).main(
                ["--output", str(tmp_path / "figures"), *models, "--source", "none", "--reference", "none"]
            )
        assert message in capsys.readouterr().err
    assert not (tmp_path / "figures").exists()


def test_lines_that_are_too_long_are_named_before_anything_is_timed(folder, tmp_path):
    (tmp_path / "text").write_text("ban dex\n" + "ban dex gir kot lun max " * 30 + "\n")
    with pytest.raises(ValueError, match="line 2 has "):
        scored_text(folder / "student", str(tmp_path / "text"), str(tmp_path / "text"))
    sources, _ = scored_text(folder / "student", str(tmp_path / "text"), str(tmp_path / "text"), 1)
    assert len(sources) == 1


def test_checkpoints_are_left_out(tmp_path):
    run = tmp_path / "run"
    for name in ("config.json", "model.safetensors", "optimizer.pt", "checkpoint-5/model.safetensors", "logs/events"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(name)
    work = tmp_path / "work"
    work.mkdir()
    assert copy_models(SimpleNamespace(student=str(run), teacher=None), work) == ["student"]
    assert sorted(path.name for path in (work / "student").rglob("*")) == ["config.json", "model.safetensors"]


def test_other_inputs_are_other_measurements(tmp_path):
    names = ("student/model.safetensors", "student/generation_config.json", "student/tokenizer.json", "test.de")
    (tmp_path / "student").mkdir()
    for name in (*names, "student/training_args.bin"):
        (tmp_path / name).write_text(name)

    def hashes():
        return cpu_run.input_hashes(tmp_path, str(tmp_path / "test.de"), None)

    before = hashes()
    assert set(before) == {*names[:3], str(tmp_path / "test.de")}
    for name, key in zip(names, before, strict=True):
        (tmp_path / name).write_text("other")
        assert [name for name, value in hashes().items() if value != before[name]] == [key]
        (tmp_path / name).write_text(name)


@pytest.mark.parametrize("name", ["benchmark", "benchmark_gpu"])
def test_a_terminated_benchmark_leaves_no_temporary_files(name, tmp_path, monkeypatch):
    folders = []

    def random_work(arguments, work):
        folders.append(Path(work))
        (work / "model.safetensors").touch()
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("SIGTERM did not stop the command")

    monkeypatch.setattr({"benchmark": cpu_run, "benchmark_gpu": gpu_run}[name], "random_work", random_work)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a command without a handler of its own goes on
    try:
        arguments = ["--output", str(tmp_path / "figures"), "--random_weights", "small"]
        with pytest.raises(SystemExit) as stopped:
            load_script(name).main([*arguments, *(["--device", "cpu"] if name == "benchmark_gpu" else [])])
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert stopped.value.code == 130
    assert len(folders) == 1
    assert not folders[0].exists()
