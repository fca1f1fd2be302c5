"""A corpus on Ray Data: every line once, with the text that one process gives, whatever is killed meanwhile."""

import contextlib
import dataclasses
import functools
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling_jmnat.commands import translate_corpus as command
from modeling_jmnat.commands.translate_corpus import CorpusArguments, load_translate, main
from modeling_jmnat.inference.engines import CTranslate2Engine, TransformersEngine
from modeling_jmnat.inference.loading import load_teacher
from modeling_jmnat.inference.numbered_blocks import CorpusInput, write_blocks
from modeling_jmnat.teacher.text_decoder import TextDecoder
from tests.helpers.teacher_samples import random_lines
from tests.helpers.translation_samples import command_line, save_translators

ray = pytest.importorskip("ray", reason="the extra `cluster` is not installed")

from modeling_jmnat.inference import corpus_translation  # noqa: E402

BLOCK_LINES = 8
ODD = ["", " \u00a0", "12,5 %", "\u200b", "ban " * 400, "https://example.org", "<br/>", "BAN KOS", "ban. kos! der"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_translators(tmp_path_factory.mktemp("models"))


def rows_of(folder):
    files = sorted(Path(folder).glob("*.parquet"))
    return sorted((row for file in files for row in pq.read_table(file).to_pylist()), key=lambda row: row["id"])


def in_one_process(arguments, lines):
    """Id, source, translation and score of each line, block after block."""
    translate = load_translate(arguments)
    starts = range(0, len(lines), BLOCK_LINES)
    translated = [pair for start in starts for pair in translate(lines[start : start + BLOCK_LINES])]
    return [
        {"id": number, "source": line, "translation": text, "score": score}
        for number, (line, (text, score)) in enumerate(zip(lines, translated, strict=True))
    ]


@pytest.mark.slow
def test_a_run_that_is_killed_and_continued(models, tmp_path, capsys, monkeypatch):
    lines = [*random_lines(5, seed=1), *ODD, *random_lines(34, seed=2)]
    (tmp_path / "text.gz").write_bytes(gzip.compress("".join(f"{line}\n" for line in lines).encode()))
    output = tmp_path / "output"
    options = {"model": models / "student", "input": tmp_path / "text.gz", "output_dir": output, "num_actors": 1}
    options |= {"block_lines": BLOCK_LINES, "num_length_candidates": 3, "device": "cpu"}
    slow = f"""
import time
from modeling_jmnat.commands import translate_corpus as command
from tests.commands.test_translate_corpus import slowly
if __name__ == "__main__":
    import functools
    command.load_translate = functools.partial(slowly, command.load_translate, 2.0)
    command.main({command_line(options)!r})
"""
    run = subprocess.Popen([sys.executable, "-c", slow])
    wait_until(lambda: len(list(output.glob("finished/*[0-9].parquet"))) >= 2, run)
    children = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.wait()
    left = psutil.wait_procs(children, timeout=60)[1]
    assert not [process for process in left if "Agent" not in process.name()]  # which look around now and then
    earlier = {path: path.stat().st_mtime_ns for path in output.glob("translations/*.parquet")}
    finished = {path.name for path in output.glob("finished/*.parquet") if ".pending" not in path.name}
    other = tmp_path / "other.gz"
    other.write_bytes((tmp_path / "text.gz").read_bytes())
    for change, sentence in (({"num_iterations": 2}, "another num_iterations"), ({"input": other}, "another input")):
        with pytest.raises(SystemExit):
            main(command_line(options | change))
        assert sentence in capsys.readouterr().err

    files = {"source_text": tmp_path / "out.src", "target_text": tmp_path / "out.tgt"}
    long = tmp_path / ("temporary" * 9)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))  # as a long TMPDIR does: sockets must be elsewhere
    main(command_line(options | files))
    monkeypatch.undo()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = rows_of(output / "translations")
    assert rows == in_one_process(CorpusArguments(**{**options, "output_dir": "x"}), lines)
    assert figures["lines"] == len(rows) == len(lines)
    assert figures["lines_per_second"] * figures["seconds"] < len(lines) - BLOCK_LINES  # of this run alone
    kept = [path for path in earlier if path.name.removesuffix("-0.parquet") + ".parquet" in finished]
    assert len(kept) >= 2
    assert all(path.stat().st_mtime_ns == earlier[path] for path in kept)  # not translated again
    assert [row["translation"] for row in rows if not row["source"].strip()] == ["", ""]
    pairs = [
        (row["source"], row["translation"]) for row in rows if row["source"].strip() and row["translation"].strip()
    ]
    assert [(tmp_path / name).read_text().splitlines() for name in ("out.src", "out.tgt")] == [
        [pair[side] for pair in pairs] for side in (0, 1)
    ]
    assert figures["pairs"] == len(pairs)
    assert sorted(path.name for path in output.iterdir()) == ["settings.json", "translation.json", "translations"]

    monkeypatch.setattr(ray, "init", None)  # what is complete needs nothing
    main(command_line(options))
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"lines": len(lines)}
    next((output / "translations").iterdir()).unlink()
    with pytest.raises(SystemExit):
        main(command_line(options))
    assert f"error: output_dir={output} is damaged" in capsys.readouterr().err


def slowly(load, seconds, *arguments):
    """A loader whose function is slow."""
    translate = load(*arguments)

    def translate_slowly(texts):
        time.sleep(seconds)
        return translate(texts)

    return translate_slowly


def wait_until(condition, process=None, seconds=300):
    deadline = time.time() + seconds
    while not condition():
        assert process is None or process.poll() is None
        assert time.time() < deadline
        time.sleep(0.1)


def test_a_run_is_resumed_with_the_same_text_and_options_alone(models, tmp_path):
    """Whatever has been written meanwhile under the same names, such as by `jmnat tune`."""
    student = shutil.copytree(models / "student", tmp_path / "student")
    text, saved = tmp_path / "text", student / "generation_config.json"
    text.write_text("ban kos\n")
    arguments = CorpusArguments(model=str(student), input=[str(text)], output_dir=str(tmp_path / "out"))
    output = tmp_path / "out"
    output.mkdir()

    def begun():
        return command.is_begun(command.settings_of(arguments, CorpusInput((str(text),))), output)

    assert not begun()
    settings = command.settings_of(arguments, CorpusInput((str(text),)))
    (output / command.SETTINGS).write_text(json.dumps(settings | {"lines": 1}))
    assert begun()
    for path, name in ((text, "input_content"), (saved, "saved_options")):
        before = path.read_text()
        path.write_text(before.replace("k", "b").replace("4", "3"))
        with pytest.raises(ValueError, match=f"holds a translation with another {name}"):
            begun()
        path.write_text(before)
    assert begun()
    pipe = command.settings_of(arguments, CorpusInput(("/dev/null",)))
    assert pipe["input_content"] == []  # a pipe can be read only once
    del settings["input_content"], settings["saved_options"]  # as of earlier versions
    (output / command.SETTINGS).write_text(json.dumps(settings | {"lines": 1}))
    assert begun()


def test_graphs_belong_to_the_options_of_a_run(models, tmp_path):
    student = shutil.copytree(models / "student", tmp_path / "student")
    (student / "onnx").mkdir()
    for name in ("translator.onnx", "decoder.onnx", "generation_config.json", "config.json"):
        (student / "onnx" / name).touch()
    assert command.option_files(str(student), "torch") == [student / "generation_config.json"]
    graphs = ["decoder.onnx", "translator.onnx", "generation_config.json"]
    assert command.option_files(str(student), "onnx") == [student / "onnx" / name for name in graphs]


@pytest.mark.parametrize("backend", ["torch", "ctranslate2"])
def test_a_teacher_translates_as_distill_does(models, backend):
    """Not by sentences; blank lines and prefixes are handled."""
    teacher = {"model": str(models / "teacher"), "backend": backend, "num_beams": 3, "device": "cpu"}
    arguments = CorpusArguments(**teacher, output_dir="x", split_sentences=False)
    lines = random_lines(6, seed=4)
    model, tokenizer = load_teacher(models / "teacher")
    ids = tokenizer(lines)["input_ids"]
    engine = TransformersEngine(model) if backend == "torch" else CTranslate2Engine.from_model(model, tokenizer)
    expected = TextDecoder(engine, tokenizer, True, 3).decode(lines, ids)
    translated = load_translate(arguments)([*lines, "", " "])
    assert [text for text, _ in translated] == [*expected, "", ""]
    assert all((score is None) == (backend == "torch") for _, score in translated[:6])
    prefixed = load_translate(dataclasses.replace(arguments, source_prefix="ban "))
    assert [text for text, _ in prefixed([lines[1], ""])] == [translated_alone(arguments, "ban " + lines[1]), ""]


def translated_alone(arguments, line):
    return load_translate(arguments)([line])[0][0]


def test_bad_options_are_one_sentence(models, tmp_path, capsys):
    (tmp_path / "text").write_text("ban\n")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    good = {"model": models / "student", "input": tmp_path / "text", "output_dir": tmp_path / "out", "device": "cpu"}
    cases = [
        ({"output_dir": ""}, "output_dir is missing"),
        ({"source_text": "x"}, "source_text and target_text belong together: give both, or neither"),
        ({"source_text": tmp_path / "x", "target_text": tmp_path / "x"}, "x is given twice: name another file"),
        ({"source_text": tmp_path / "text", "target_text": "x"}, "text is given twice: name another file"),
        ({"block_lines": 0}, "block_lines=0 must be at least 1"),
        ({"long_lines": "error"}, "long_lines=error does not apply to a corpus: choose split, truncate or skip"),
        ({"input": tmp_path / "none"}, "No such file"),
        ({"model": tmp_path / "none"}, "none does not exist"),
        ({"backend": "ctranslate2"}, "backend=ctranslate2 does not apply to JM-NAT"),
        ({"backend": "magic"}, "backend='magic' is not one of"),
        ({"num_beams": -1}, "num_beams=-1 must be at least 1"),
        ({"model": models / "teacher", "generation_options": '{"min_length": 3}'}, "min_length does not apply"),
        ({"output_dir": tmp_path / "used"}, "holds other files: choose a new or empty folder"),
    ]
    for change, sentence in cases:
        with pytest.raises(SystemExit) as stopped:
            main(command_line(good | change))
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert (stopped.value.code, said[:7]) == (1, "error: "), said
        assert sentence in said


def test_no_folder_for_sockets_is_one_sentence(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/" + 100 * "x")
    monkeypatch.setattr(os, "access", lambda path, mode: path != "/tmp")
    message = "TMPDIR=/x+ is too long for Ray's sockets, and /tmp is not writable: set a shorter one"
    with pytest.raises(ValueError, match=message), corpus_translation.connected(corpus_translation.Pool()):
        pass


# A cluster of two nodes ----------------------------------------------------------------------------------------------

KILLS = int(os.environ.get("JMNAT_RAY_KILLS", "2"))
NODE = {"num_cpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    cluster.add_node(**{name: value for name, value in NODE.items() if name != "include_dashboard"})
    yield cluster
    cluster.shutdown()


def actors(cluster):
    """Processes that translate, of all nodes."""
    found = []
    for node in (cluster.head_node, *cluster.worker_nodes):
        (raylet,) = node.all_processes["raylet"]
        for process in psutil.Process(raylet.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if any("MapBatches(BlockTranslator)" in word for word in process.cmdline()):
                    found.append(process)
    return found


def kill_at_random(cluster, output, kinds, is_done):
    """Kill an actor or a node at random moments, each time after more has been translated; yields what, and when."""
    draw = random.Random(len(kinds))

    def finished():
        return len([path for path in output.glob("finished/*.parquet") if ".pending" not in path.name])

    for kind in kinds:
        before = finished()
        while finished() == before or not actors(cluster):
            if is_done():
                return
            time.sleep(0.05)
        time.sleep(draw.uniform(0, 1))
        blocks = finished()
        if kind == "node":
            (node,) = cluster.worker_nodes
            cluster.remove_node(node, allow_graceful=False)
            cluster.add_node(**{name: value for name, value in NODE.items() if name != "include_dashboard"})
        else:
            draw.choice(actors(cluster)).send_signal(signal.SIGKILL)
        yield kind, blocks


@pytest.mark.slow
def test_actors_and_nodes_may_be_killed(models, tmp_path, cluster):
    """JMNAT_RAY_KILLS=20 kills more often."""
    lines = [*ODD, *random_lines(BLOCK_LINES * (8 + 4 * KILLS) - len(ODD), seed=3)]
    (tmp_path / "blocks").mkdir()
    write_blocks(enumerate(lines), tmp_path / "blocks", BLOCK_LINES)
    arguments = CorpusArguments(model=str(models / "student"), output_dir="x", device="cpu")
    kinds = ["actor", "node"] * (KILLS // 2) + ["actor"] * (KILLS % 2)
    random.Random(KILLS).shuffle(kinds)
    output = tmp_path / "output"
    places = (tmp_path / "blocks", output / "translations", output / "finished")
    pool = corpus_translation.Pool(cluster.address, num_actors=2)
    load = functools.partial(slowly, load_translate, 0.5, arguments)
    start = time.time()
    with corpus_translation.connected(pool), ThreadPoolExecutor(1) as thread:
        translating = thread.submit(corpus_translation.translate_blocks, *places, load, pool)
        killed = []
        for kind, blocks in kill_at_random(cluster, output, kinds, translating.done):
            killed.append(kind)
            print(f"{time.time() - start:4.0f} s: {kind} killed after {blocks} blocks", flush=True)
        translating.result()
    print(f"{time.time() - start:4.0f} s: {len(lines)} lines in {len(lines) // BLOCK_LINES} blocks", flush=True)
    assert killed == kinds
    rows = rows_of(output / "translations")
    assert [row["id"] for row in rows] == list(range(len(lines)))
    assert rows == in_one_process(arguments, lines)
    command.check_complete(output / "translations", len(lines))
    (first, *_) = sorted((output / "translations").glob("*.parquet"))
    pq.write_table(pa.concat_tables([pq.read_table(first)] * 2), first)
    with pytest.raises(RuntimeError, match="rows of"):
        command.check_complete(output / "translations", len(lines))


def test_an_error_of_an_actor_is_that_of_the_command(tmp_path, cluster):
    (tmp_path / "blocks").mkdir()
    write_blocks(enumerate(["a"]), tmp_path / "blocks", 1)
    pool = corpus_translation.Pool(cluster.address, num_actors=1)
    places = (tmp_path / name for name in ("blocks", "translations", "finished"))
    with corpus_translation.connected(pool), pytest.raises(ValueError, match="^this line cannot be read$"):
        corpus_translation.translate_blocks(*places, unable, pool)


def unable():
    def translate(texts):
        raise ValueError("this line cannot be read")

    return translate
