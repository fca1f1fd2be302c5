"""Output files: links stay links, pipes and devices are written as they are, files are whole or as before."""

import os
import threading

import pytest

from modeling_jmnat.utils.atomic_files import atomic_text_file, check_writable, write_json


def test_a_link_stays_and_what_it_points_to_is_written(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "file")
    for value in (1, 2):  # the file is new, then there
        write_json(tmp_path / "link", value)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "folder" / "file").read_text() == f"{value}\n"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["file"]


def test_a_pipe_is_written_and_stays(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    received = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "pipe").read_text()), daemon=True)
    reader.start()
    write_json(tmp_path / "pipe", "text")
    reader.join(timeout=10)
    assert received == ['"text"\n']
    assert (tmp_path / "pipe").is_fifo()


def test_a_link_to_a_device_is_written_and_stays(tmp_path):
    (tmp_path / "null").symlink_to("/dev/null")
    write_json(tmp_path / "null", 1)
    assert (tmp_path / "null").is_symlink()
    assert (tmp_path / "null").is_char_device()
    assert [path.name for path in tmp_path.iterdir()] == ["null"]


def test_a_block_that_fails_leaves_the_file_as_it_was(tmp_path):
    (tmp_path / "file").write_text("before")

    def fail():
        with atomic_text_file(tmp_path / "file") as file:
            file.write("half")
            raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        fail()
    assert (tmp_path / "file").read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_could_not_be_written_is_refused_and_what_is_there_stays(tmp_path):
    (tmp_path / "file").write_text("before")
    for name in ("file", "new"):
        check_writable(tmp_path / name)
    check_writable("/dev/null")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"
    for path in (tmp_path, tmp_path / "absent" / "file"):
        with pytest.raises(OSError, match="is a folder|is not a folder"):
            check_writable(path)
