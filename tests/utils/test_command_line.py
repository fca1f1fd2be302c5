"""An error that the user can fix is one sentence and exit code 1, whichever library found it."""

import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tqdm import tqdm

from modeling_jmnat.utils.atomic_files import atomic_text_file
from modeling_jmnat.utils.command_line import command, parse_arguments, read_ahead
from modeling_jmnat.utils.signals import handling
from tests.helpers.translation_samples import tiny_tokenizer


def test_damaged_weights_and_missing_libraries_get_one_sentence(tmp_path, capsys):
    (tmp_path / "model.safetensors").write_bytes(b"cut")

    def lacking(argv):
        raise ImportError("needs sentencex:\npip install sentencex")

    for main, sentence in (
        (lambda argv: safe_open(tmp_path / "model.safetensors", "pt"), "a file of weights (.safetensors) cannot be"),
        (lacking, "needs sentencex: pip install sentencex"),
    ):
        with pytest.raises(SystemExit) as stopped:
            command(main)()
        assert stopped.value.code == 1
        text = capsys.readouterr().err
        assert text.startswith(f"error: {sentence}")
        assert text.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_command_and_removes_temporary_files(tmp_path, capsys, number):
    before = signal.getsignal(signal.SIGTERM)

    def main(argv):
        with atomic_text_file(tmp_path / "file"), handling(signal.default_int_handler, signal.SIGINT):
            os.kill(os.getpid(), number)  # SIGINT is ignored where the tests run in the background
            time.sleep(10)

    for wrapped, sentence in (
        (command(main), "stopped"),
        (command(resumes=True)(main), "stopped; run the same command again to resume"),
    ):
        with pytest.raises(SystemExit) as stopped:
            wrapped()
        assert stopped.value.code == 128 + number
        assert capsys.readouterr().err == f"{sentence}\n"
        assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


def raising(error):
    def main(argv):
        raise error

    return main


CPU = (
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
)
GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU"),
            "(2.00 GiB more were requested)",
        ),
        (RuntimeError(f"{CPU}40000 bytes. Error code 12"), "(40000 bytes more were requested)"),
        (RuntimeError("CUDA error: out of memory"), "out of memory: lower"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling"), "out of memory: lower"),
        (MemoryError("Unable to allocate 7.45 GiB for an array"), "(7.45 GiB more were requested)"),
        (MemoryError(), "out of memory: lower"),
    ],
)
def test_out_of_memory_says_what_to_lower(capsys, error, sentence):
    with pytest.raises(SystemExit) as stopped:
        command(memory="--batch_tokens")(raising(error))()
    assert stopped.value.code == 1
    text = capsys.readouterr().err
    assert text.startswith("error: out of memory")
    assert sentence in text
    assert text.endswith(": lower --batch_tokens\n")
    with pytest.raises(SystemExit):
        command(raising(error))()
    assert capsys.readouterr().err.endswith(": use a machine with more memory\n")


@pytest.mark.parametrize(
    "error", [RuntimeError(GLOO), torch.distributed.DistBackendError("NCCL error: remote process exited")]
)
def test_another_process_that_ended_gets_one_sentence(capsys, error):
    with pytest.raises(SystemExit) as stopped:
        command(resumes=True)(raising(error))()
    assert stopped.value.code == 1
    text = capsys.readouterr().err
    assert text.startswith("error: another process of this run has ended: see its own message (")
    assert text.endswith("run the same command again to resume\n")


def test_forbidden_pickles_get_one_sentence(tmp_path, capsys):
    torch.save({"object": subprocess.Popen}, tmp_path / "weights.bin")
    with pytest.raises(SystemExit):
        command(lambda argv: torch.load(tmp_path / "weights.bin", weights_only=True))()
    text = capsys.readouterr().err
    assert text.startswith(
        "error: a PyTorch file is not loaded because it holds more than tensors and plain values, or is damaged"
    )
    assert text.count("\n") == 1
    with pytest.raises(SystemExit):
        command(raising(pickle.UnpicklingError("pickle data was truncated")))()
    assert "Traceback" not in capsys.readouterr().err


def test_errors_are_printed_on_their_own_line(capsys):
    def main(argv):
        for name in ("outer", "inner"):
            main.bars.append(tqdm(total=5, desc=name))
            main.bars[-1].update()
        raise ValueError("x=1 must be at least 2")

    main.bars = []  # as the frames of a traceback keep them
    with pytest.raises(SystemExit):
        command(main)()
    lines = capsys.readouterr().err.split("\n")
    assert "error: x=1 must be at least 2" in [line.rpartition("\r")[2] for line in lines if line.startswith("error")]


@pytest.mark.parametrize("option", ["", "-u"])
def test_a_reader_that_goes_away_ends_a_command_quietly(option):
    program = (
        "from modeling_jmnat.utils.command_line import command\n"
        "@command\n"
        "def main(argv=None):\n"
        "    for number in range(10**6):\n"
        "        print(number)\n"
        "main()"
    )
    line = f"{sys.executable} {option} -c '{program}' | head -n 2; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("0\n1\n141\n", "")
    # What is printed at the end, too, is known to have had no reader.
    line = f"(sleep 0.5; {sys.executable} -m modeling_jmnat.commands --help) | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("141\n", "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_streams_may_be_closed(closed):
    line = f"{sys.executable} -m modeling_jmnat.commands --version {closed}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_broken_pipe_to_another_process_is_an_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        command(raising(BrokenPipeError(32, "Broken pipe")))()
    assert stopped.value.code == 1
    assert "Broken pipe" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError):
        command(lambda argv: {}["absent"])()


def missing(name):
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_missing_extra_is_named(capsys):
    def hidden(argv):  # as Transformers' own lazy modules do
        try:
            missing("accelerate.utils")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("Could not import module 'Trainer'") from error

    def required(argv):  # as Transformers' checks of versions do
        raise ImportError(
            "Using the `Trainer` requires `accelerate>=1.1.0`: Please run `pip install transformers[torch]`"
        )

    for main, sentence in (
        (lambda argv: missing("datasets"), "datasets: pip install 'modeling-jmnat[train]'"),
        (lambda argv: missing("pandas"), "pandas: pip install 'modeling-jmnat[train]'"),
        (lambda argv: missing("onnx.helper"), "onnx: pip install 'modeling-jmnat[bench]'"),
        (lambda argv: missing("gradio"), "gradio: pip install 'modeling-jmnat[space]'"),
        (hidden, "accelerate: pip install 'modeling-jmnat[train]'"),
        (required, "accelerate: pip install 'modeling-jmnat[train]'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            command(main)()
        assert stopped.value.code == 1
        assert capsys.readouterr().err == f"error: this command needs {sentence}\n"


def test_any_other_missing_module_is_a_bug():
    with pytest.raises(ModuleNotFoundError, match="modeling_jmnat.absent"):
        command(lambda argv: missing("modeling_jmnat.absent"))()
    with pytest.raises(ImportError, match="cannot import name"):
        command(lambda argv: exec("from json import absent"))()


@dataclass
class Options:
    """What to do."""

    data: str = field(metadata={"help": "Folder."})
    steps: int = field(default=3, metadata={"help": "Steps."})


def test_options_come_from_dataclass_defaults_and_command_line(capsys):
    assert parse_arguments(["--data", "x"], Options, "") == (Options("x", 3),)
    assert parse_arguments(["--data", "x"], [Options], "", {"steps": 5}) == (Options("x", 5),)
    assert parse_arguments(["--data=y", "--steps", "4"], Options, "", {"steps": 5}) == (Options("y", 4),)
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(["--steps", "4"], Options, "")
    assert stopped.value.code == 2
    assert "--data DATA [--OPTION VALUE ...]" in capsys.readouterr().err
    for words in (["-h"], ["--steps", "4", "--help"]):
        with pytest.raises(SystemExit) as stopped:
            parse_arguments(words, Options, "About it.", {"steps": 5})
        assert not stopped.value.code
        text = capsys.readouterr().out
        assert "About it." in text
        assert "Steps. (default: 5)" in text
    assert read_ahead(["--preset", "a", "--other", "1"], "preset", "init_from").preset == "a"
    assert read_ahead(["--init-from=b"], "preset", "init_from").init_from == "b"
    assert read_ahead([], "preset").preset is None


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--stebs", "4"], "--stebs is not an option of .*: did you mean --steps\\?"),
        (["--stebs=4"], "--stebs is not an option of .*: did you mean --steps\\?"),
        (["--entirely", "4"], "--entirely is not an option of .* --help lists all options"),
        (["more"], "'more' belongs to no option, whose names begin with --: .* --help lists all options"),
    ],
)
def test_a_word_that_belongs_to_no_option_is_named(words, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        parse_arguments(["--data", "x", *words], Options, "")


def test_idle_threads_do_not_spin(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    seen = []
    command(lambda argv: seen.append(os.environ["OMP_WAIT_POLICY"]))([])
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    command(lambda argv: seen.append(os.environ["OMP_WAIT_POLICY"]))([])
    assert seen == ["PASSIVE", "ACTIVE"]


def test_a_file_that_tokenizers_cannot_write_gets_one_sentence(tmp_path, capsys):
    """It raises a bare Exception, as it does where a disk is full."""
    tokenizer = tiny_tokenizer()

    def save(argv):
        tokenizer.backend_tokenizer.save(str(tmp_path))

    with pytest.raises(SystemExit) as stopped:
        command(save)([])
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("error: a file cannot be read or written: Is a directory (os error 21)")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("WandbCallback requires wandb to be installed. Run `pip install wandb`."),
        KeyError("The `metric_for_best_model` training argument is set to 'eval_x', which is not found."),
    ],
)
def test_what_transformers_tells_a_user_is_no_bug(error, capsys):
    with pytest.raises(SystemExit) as stopped:
        command(lambda argv: (_ for _ in ()).throw(error))([])
    assert stopped.value.code == 1
    assert capsys.readouterr().err == f"error: {error.args[0]}\n"


@pytest.mark.parametrize(
    ("opened", "sentence"),
    [
        ("absent.de", "absent.de: No such file or directory; check the path"),
        ("absent/text.de", "absent/text.de: No such file or directory; check the path"),
        (".", ".: Is a directory; name a file in it"),
        ("file/text.de", "file/text.de: Not a directory"),
    ],
)
def test_a_file_that_cannot_be_opened_is_named_first(tmp_path, monkeypatch, capsys, opened, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        command(lambda argv: Path(opened).read_text())()
    assert capsys.readouterr().err.strip() == f"error: {sentence}"
