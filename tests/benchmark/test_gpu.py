"""The GPU benchmark, as far as a CPU can tell: systems, rounds against the clock, and one small run of the command."""

import itertools
import json
import time

import pytest

from tests.benchmark.test_benchmark import Clock, FakeEngine
from tests.helpers.teacher_samples import random_lines
from tests.helpers.translation_samples import load_script, save_translators

pytest.importorskip("sacrebleu", reason="the extra `train` is not installed")

from modeling_jmnat.benchmark import gpu as benchmark_gpu  # noqa: E402
from modeling_jmnat.benchmark import systems as benchmark_systems  # noqa: E402
from modeling_jmnat.benchmark import timing as benchmark  # noqa: E402
from modeling_jmnat.benchmark.gpu import (  # noqa: E402
    REFERENCES,
    gpu_systems,
    gpu_table,
    in_order,
    load_engines,
    plain_twin,
    texts_equal,
    timed_rounds,
)
from modeling_jmnat.benchmark.systems import System, prepare_teacher  # noqa: E402
from modeling_jmnat.inference.loading import load_translator  # noqa: E402
from modeling_jmnat.inference.translation import translate_lines  # noqa: E402


def test_systems_are_all_there_is_to_compare():
    systems = gpu_systems("teacher", "student", [1, 4], [1, 4], ["float32", "float16"], length=25)
    twice = gpu_systems("teacher", "student", [1, 4, 1], [1, 4, 4], ["float32", "float16", "float32"], length=25)
    assert twice == systems
    titles = [system.title for system in systems]
    assert len(set(titles)) == len(titles) == 2 * 3 + 2 * 2 * 4
    assert set(REFERENCES) < set(titles)
    assert "JM-NAT graphs float16, C = 4, k = 4" in titles
    assert all(system.options["length"] == 25 for system in systems)
    twins = {system.title: plain_twin(system, systems) for system in systems}
    assert twins["JM-NAT graphs float16, C = 1, k = 4"].title == "JM-NAT plain float16, C = 1, k = 4"
    assert twins["JM-NAT plain float16, C = 1, k = 4"] is None
    assert len({system.model_key for system in systems}) == 3 + 4


def test_rounds_end_with_the_time(monkeypatch):
    clock, calls = Clock(), []
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(benchmark_gpu.time, "monotonic", lambda: clock.now)
    systems = [System(name, "torch", name, graphs=name == "b", options={"name": name}) for name in "ab"]
    engines = {system.model_key: FakeEngine(clock, 1.0 + index, calls) for index, system in enumerate(systems)}
    outputs = {}
    rounds = timed_rounds(systems, engines, [[[1]], [[2]]], 2, 10, deadline=0.0, outputs=outputs)
    assert next(rounds) == {systems[0]: [[1.0, 1.0]], systems[1]: [[2.0, 2.0]]}
    assert calls[:3] == [("b", [[1]])] * 2 + [("b", [[2]])]  # the shapes of graphs come first
    assert [name for name, _ in calls[3::3]] == ["a", "b"]
    calls.clear()
    assert [len(times[systems[0]]) for times in rounds] == [2, 3]  # the least that ratios need, though time is up
    assert [name for name, _ in calls[::3]] == ["b", "a", "a", "b"]  # the order turns with each round
    assert outputs[systems[1]] == {0: [[1]], 1: [[2]]}
    rounds = timed_rounds(systems[:1], engines, [[[1]]], 1, 5, deadline=clock.now + 1e6, outputs={})
    assert len(list(rounds)) == 5


def test_translations_find_their_places():
    assert in_order({0: ["b", "c"], 1: ["a"]}, [[1, 2], [0]]) == ["a", "b", "c"]
    assert texts_equal([5, 6, 2], [5, 6, 2, 1, 1])
    assert not texts_equal([5, 6, 2], [5, 7, 2])
    assert not texts_equal([5, 6], [5, 6, 7, 2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_translators(tmp_path_factory.mktemp("models"))


def test_what_cannot_be_used_is_named(folder, monkeypatch):
    def broken(system, num_threads):
        raise RuntimeError("Library libcublas.so.12 is not found\nor cannot be loaded")

    monkeypatch.setitem(benchmark_systems.ENGINES, "ctranslate2", broken)
    systems = gpu_systems(str(folder / "teacher"), str(folder / "student"), [1], [1], ["float32"], 6, "cpu")
    engines, missing = load_engines(systems)
    assert missing == {"CTranslate2 float16": "Library libcublas.so.12 is not found or cannot be loaded"}
    assert len(engines) == 3


def test_ctranslate2_translates_as_its_teacher(folder):
    pytest.importorskip("ctranslate2", reason="the extra `bench` is not installed")
    prepare_teacher(folder / "teacher")
    options = {"num_beams": 5}
    teacher = str(folder / "teacher")
    systems = [
        System(name, name, teacher, "beam 5", options=options, device="cpu")
        for name in ("transformers", "ctranslate2")
    ]
    engines, missing = load_engines(systems)
    assert missing == {}
    found = []
    for engine in engines.values():
        output = engine.read(engine.translate(engine.prepare([[5, 6, 7, 2]]), options))
        found.append(list(itertools.takewhile(lambda token: token not in (1, 2), output[0])))
    assert found[0] == found[1]


def test_graphs_backend_translates_the_same(folder):
    lines = [line for line in random_lines(9, seed=2) if line.strip()]
    found = []
    for backend in ("torch", "cuda_graphs"):
        model, tokenizer = load_translator(folder / "student", "cpu", backend=backend)
        options = {"num_iterations": 3, "num_length_candidates": 2, "num_return_sequences": 2}
        results = list(translate_lines(model, tokenizer, lines, max_batch_tokens=60, **options))
        found.append([[text for text, _ in result.candidates] for result in results])
    assert found[0] == found[1]
    with pytest.raises(ValueError, match="must be a JMNatForConditionalGeneration"):
        load_translator(folder / "teacher", "cpu", backend="cuda_graphs")


def test_the_command(folder, tmp_path, capsys):
    lines = [line for line in random_lines(8, seed=9) if line.strip()]
    for name in ("source", "reference"):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    arguments = ["--output", str(tmp_path / "figures"), "--device", "cpu", "--dtypes", "float32", "--passes", "2"]
    trained = ["--student", str(folder / "student"), "--teacher", str(folder / "teacher")]
    trained += ["--source", str(tmp_path / "source"), "--reference", str(tmp_path / "reference")]
    limits = ["--candidates", "2", "--sentences", "2", "--rounds", "2", "--batch_sizes", "3", "--time_budget", "0.02"]
    script = load_script("benchmark_gpu")
    start = time.monotonic()
    script.main([*arguments, *trained, *limits])
    assert time.monotonic() - start < 120
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["systems"] == 4
    rows = json.loads((tmp_path / "figures" / "rows.json").read_text())
    assert {row["title"] for row in rows} == {
        "Transformers float32, beam 5",
        "Transformers float32, greedy",
        "JM-NAT plain float32, C = 2, k = 2",
        "JM-NAT graphs float32, C = 2, k = 2",
    }
    for row in rows:
        assert row["rounds"] == 2
        assert row["latency_ms"] > 0
        assert row["throughput"]["3"]["sentences_per_second"] > 0
        assert 0 <= row["bleu"] <= 100
    assert rows[-1]["same_as_plain"] == 1.0
    assert "CTranslate2 float16" in json.loads((tmp_path / "figures" / "environment.json").read_text())["missing"]
    assert gpu_table(rows).count("\n|") == 1 + 4
    for wrong, message in (
        (["--candidates", "0"], "candidates=0 must be at least 1"),
        (["--dtypes", "float16", "foo"], "dtypes='foo' is not one of float32, bfloat16, float16"),
        (["--passes", "2"], "student is missing"),
    ):
        with pytest.raises(SystemExit):
            script.main([*arguments, *wrong])
        assert message in capsys.readouterr().err
