"""Where processes meet: sockets whose paths the system limits."""

import multiprocessing
import socket
import tempfile
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from modeling_jmnat import JMNatTrainingArguments
from modeling_jmnat.training.arguments import SOCKET_CHARACTERS
from modeling_jmnat.utils.workers import LONGEST_SOCKET_PATH, has_room_for_sockets


@pytest.fixture
def short_path():
    """A new folder; that of pytest may be too long."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def folder_of_length(length, start):
    """A new folder whose path has this many characters."""
    folder = start / ("x" * (length - len(str(start)) - 1))
    folder.mkdir()
    assert len(str(folder)) == length
    return folder


def test_paths_reported_as_short_enough_work(short_path):
    name = "x" * 20
    folder = folder_of_length(LONGEST_SOCKET_PATH - 21, short_path)
    assert has_room_for_sockets(str(folder), 21)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"{folder}/{name}")
    assert not has_room_for_sockets(str(folder), 22)
    with socket.socket(socket.AF_UNIX) as bound, pytest.raises(OSError, match="too long"):
        bound.bind(f"{folder}/{name}xxxxx")


def test_workers_talk_in_the_longest_folder_and_a_longer_one_is_refused(short_path, monkeypatch):
    """Beyond it PyTorch's workers print a traceback each, and the training waits for them forever."""
    arguments = {"output_dir": str(short_path / "run"), "dataloader_num_workers": 1, "use_cpu": True}
    monkeypatch.setitem(multiprocessing.current_process()._config, "tempdir", None)
    folder = folder_of_length(LONGEST_SOCKET_PATH - SOCKET_CHARACTERS, short_path)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    JMNatTrainingArguments(**arguments)
    assert [batch.tolist() for batch in DataLoader([1, 2, 3], num_workers=1, timeout=60)] == [[1], [2], [3]]
    monkeypatch.setattr(tempfile, "tempdir", f"{folder}x")
    with pytest.raises(ValueError, match="dataloader_num_workers=1: .* Set TMPDIR to a shorter one"):
        JMNatTrainingArguments(**arguments)
    JMNatTrainingArguments(**arguments | {"dataloader_num_workers": 0})
