"""Locks: one process at a time, for as long as it lives; nothing is left in the folder."""

import errno
import fcntl
import os
import signal
import threading
import time

import pytest

from modeling_jmnat.utils.locks import LOCK, file_lock, folder_lock, try_lock


class Holder:
    """A child process that holds a folder until it is told to end, or killed."""

    def __init__(self, folder, **options):
        ready, self.end = os.pipe(), os.pipe()
        self.process = os.fork()
        if self.process == 0:
            os.close(self.end[1])
            try:
                with folder_lock(folder, "output", **options):
                    os.write(ready[1], b"held")
                    os.read(self.end[0], 1)
            finally:
                os._exit(0)
        os.close(self.end[0])
        assert os.read(ready[0], 4) == b"held"

    def kill(self):
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)

    def release(self):
        os.close(self.end[1])
        os.waitpid(self.process, 0)


@pytest.mark.parametrize("beside", [False, True])
def test_another_process_is_refused_until_the_first_one_ends(tmp_path, beside):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "link").symlink_to("folder")
    for end in (Holder.kill, Holder.release):
        holder = Holder(folder, beside=beside)
        for name in ("folder", "link"):
            message = (
                f"^output={tmp_path / name} is in use by another process: wait until it ends or choose another folder$"
            )
            with pytest.raises(ValueError, match=message), folder_lock(tmp_path / name, "output", beside):
                pass
        assert list(tmp_path.rglob(".*")) == [tmp_path / ".folder.lock" if beside else folder / LOCK]
        end(holder)
        with folder_lock(folder, "output", beside):
            pass
    assert list(tmp_path.rglob(".*")) == []


def test_the_folder_is_created_and_kept_if_not_empty(tmp_path):
    with folder_lock(tmp_path / "deep" / "new", "output"):
        assert (tmp_path / "deep" / "new" / LOCK).is_file()
    assert list((tmp_path / "deep").iterdir()) == []
    with folder_lock(tmp_path / "deep" / "new", "output"):
        (tmp_path / "deep" / "new" / "result").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["deep", "new", "result"]
    (tmp_path / "empty").mkdir()  # somebody else's
    with folder_lock(tmp_path / "empty", "output"):
        pass
    assert (tmp_path / "empty").is_dir()
    with folder_lock(tmp_path / "absent", "output", beside=True):
        assert not (tmp_path / "absent").exists()
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is a file: name a folder"), folder_lock(tmp_path / "file", "o"):
        pass


@pytest.mark.parametrize("beside", [False, True])
def test_either_lock_keeps_out_both_kinds_of_processes(tmp_path, beside):
    """A command that replaces a folder whole must not meet one that writes in it."""
    folder = tmp_path / "folder"
    if not beside:
        folder.mkdir()  # which a training does
    for end in (Holder.kill, Holder.release):
        holder = Holder(folder, beside=beside)
        with pytest.raises(ValueError, match="is in use by another process"), folder_lock(folder, "o", not beside):
            pass
        assert folder.exists() is not beside
        end(holder)
        with folder_lock(folder, "o", not beside):  # also beside the lock file that the killed one left
            pass
    assert list(tmp_path.rglob(".*")) == []


def test_an_error_inside_releases_the_folder(tmp_path):
    with pytest.raises(KeyError), folder_lock(tmp_path, "output"):
        raise KeyError
    with folder_lock(tmp_path, "output"):
        pass


def test_a_removed_lock_file_does_not_count_as_locked(tmp_path):
    """Two processes that alternate remove and create the file all the time; both never hold the lock at once."""
    inside, most, turns, ended = 0, 0, 0, 0

    def take_turns():
        nonlocal inside, most, turns, ended
        deadline = time.monotonic() + 60
        while turns <= 200 and time.monotonic() < deadline:
            try:
                with folder_lock(tmp_path, "output"):
                    inside += 1
                    most = max(most, inside)
                    time.sleep(0)
                    inside -= 1
                    turns += 1
            except ValueError:
                pass
        ended += 1

    threads = [threading.Thread(target=take_turns) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, ended) == (1, 4)
    assert turns > 200


def test_a_lock_can_be_waited_for(tmp_path):
    with open(tmp_path / "lock", "w") as first, open(tmp_path / "lock", "w") as second:
        assert try_lock(first.fileno())
        assert not try_lock(second.fileno())
        threading.Timer(0.3, first.close).start()
        assert try_lock(second.fileno(), seconds=10)


def test_a_file_is_locked_by_its_path_and_devices_are_not(tmp_path):
    (tmp_path / "link").symlink_to("new")
    message = f"^output={tmp_path / 'link'} is in use by another process: wait until it ends or choose another file$"
    with file_lock(tmp_path / "new", "output"):
        with pytest.raises(ValueError, match=message), file_lock(tmp_path / "link", "output"):
            pass
        with file_lock(tmp_path / "other", "output"):
            pass
    for name in (".new.123.tmp", ".new.1.123.tmp", ".new.x.tmp"):  # the first one was left by a killed process
        (tmp_path / name).touch()
    with file_lock(tmp_path / "new", "output"):
        assert sorted(path.name for path in tmp_path.glob(".*.tmp")) == [".new.1.123.tmp", ".new.x.tmp"]
    for name in (".new.1.123.tmp", ".new.x.tmp"):
        (tmp_path / name).unlink()
    for path in (None, os.devnull, tmp_path, tmp_path / "absent" / "new"):
        with file_lock(path, "output"), file_lock(path, "output"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_a_file_system_without_locks_is_used_without_them(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with folder_lock(tmp_path / "new", "output"):
        (tmp_path / "new" / "result").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "result"]
