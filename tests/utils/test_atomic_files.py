"""Output: links stay links, pipes and devices are written as they are, files and folders are whole or as before."""

import errno
import os
import resource
import shutil
import signal
import stat
import threading
from pathlib import Path

import pytest

from modeling_jmnat.utils.atomic_files import (
    UNFINISHED,
    atomic_text_file,
    check_writable,
    publish_folder,
    remove_folder,
    replace_files,
    whole_folder,
    write_json,
)


def test_the_target_of_a_link_is_written(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "file")
    for value in (1, 2):  # the file is new, then there
        write_json(tmp_path / "link", value)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "folder" / "file").read_text() == f"{value}\n"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["file"]


def test_a_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    received = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "pipe").read_text()), daemon=True)
    reader.start()
    write_json(tmp_path / "pipe", "text")
    reader.join(timeout=10)
    assert received == ['"text"\n']
    assert (tmp_path / "pipe").is_fifo()


def test_a_link_to_a_device_is_written_to(tmp_path):
    (tmp_path / "null").symlink_to("/dev/null")
    write_json(tmp_path / "null", 1)
    assert (tmp_path / "null").is_symlink()
    assert (tmp_path / "null").is_char_device()
    assert [path.name for path in tmp_path.iterdir()] == ["null"]


def test_a_failing_block_leaves_the_file_unchanged(tmp_path):
    (tmp_path / "file").write_text("before")

    def fail():
        with atomic_text_file(tmp_path / "file") as file:
            file.write("half")
            raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        fail()
    assert (tmp_path / "file").read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


def test_unwritable_paths_are_refused_and_files_are_kept(tmp_path):
    (tmp_path / "file").write_text("before")
    for name in ("file", "new"):
        check_writable(tmp_path / name)
    check_writable("/dev/null")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"
    for path in (tmp_path, tmp_path / "absent" / "file"):
        with pytest.raises(OSError, match="is a folder|is not a folder"):
            check_writable(path)


def write(folder, **files):
    """Files by name, `__` for a slash in it and `_` for a dot."""
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def contents(folder):
    """Text of all files by name, and the names of empty folders; hidden ones, too."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            found[str(path.relative_to(folder))] = path.read_text()
        elif not any(path.iterdir()):
            found[str(path.relative_to(folder))] = None
    return found


def test_a_whole_folder_appears_at_the_end_and_replaces_the_earlier_one(tmp_path):
    path = tmp_path / "deep" / "folder"
    for text in ("one", "two"):
        with whole_folder(path) as folder:
            assert contents(folder) == {}
            write(folder, **{f"{text}_txt": text, "inside__file": text})
            assert contents(path) == ({"one.txt": "one", "inside/file": "one"} if text == "two" else {})
        assert contents(tmp_path / "deep") == {f"folder/{text}.txt": text, "folder/inside/file": text}


def test_an_empty_folder_is_replaced_and_a_file_is_not(tmp_path):
    (tmp_path / "empty").mkdir()
    with whole_folder(tmp_path / "empty") as folder:
        write(folder, a="a")
    assert contents(tmp_path) == {"empty/a": "a"}
    for context in (whole_folder, replace_files):
        with pytest.raises(NotADirectoryError, match="a is a file: name a folder"), context(tmp_path / "empty" / "a"):
            pass
    assert contents(tmp_path) == {"empty/a": "a"}


def write_meanwhile(path, change, **options):
    """Write a folder whole and call `change` before it gets its name."""
    with whole_folder(path, **options) as folder:
        write(folder, ours="ours")
        change()


@pytest.mark.parametrize("exists", [False, True])
def test_what_others_write_meanwhile_is_kept(tmp_path, exists):
    """In a folder that is new, and in one that would have been replaced."""
    path = tmp_path / "folder"
    changes = [lambda: write(path, theirs="theirs"), lambda: write(path, sub__theirs="theirs")]
    if exists:
        changes += [lambda: write(path, a="AFTER!"), lambda: (path / "a").rename(path / "b")]  # of the same size

    def before():
        if exists:
            write(path, a="before")
            os.utime(path / "a", (0, 0))  # the clock of a file system has ticks of some milliseconds

    for change in changes:
        before()
        change()
        expected = contents(tmp_path)
        shutil.rmtree(path)
        before()
        with pytest.raises(FileExistsError, match=f"^{path} has been written by another process since this command"):
            write_meanwhile(path, change)
        assert contents(tmp_path) == expected
        shutil.rmtree(path)


def test_a_folder_that_may_not_be_replaced(tmp_path):
    path = tmp_path / "folder"
    write(path, theirs="theirs")
    with pytest.raises(FileExistsError, match="left as it is: name another folder"):
        write_meanwhile(path, lambda: None, replace=False)
    assert contents(tmp_path) == {"folder/theirs": "theirs"}
    shutil.rmtree(path)
    write_meanwhile(path, path.mkdir, replace=False)  # an empty one is in nobody's way
    assert contents(tmp_path) == {"folder/ours": "ours"}


def test_a_folder_that_was_removed_meanwhile_is_new(tmp_path):
    path = tmp_path / "folder"
    write(path, a="before")
    write_meanwhile(path, lambda: shutil.rmtree(path))
    assert contents(tmp_path) == {"folder/ours": "ours"}


def test_a_failing_block_leaves_the_folder_unchanged(tmp_path):
    write(tmp_path / "folder", a="before")
    before = contents(tmp_path)

    def fail(context, name):
        with context(tmp_path / name) as folder:
            write(folder, a="after", b="after")
            raise ValueError("in the middle")

    for name in ("folder", "new"):
        for context in (whole_folder, replace_files):
            with pytest.raises(ValueError, match="in the middle"):
                fail(context, name)
            assert contents(tmp_path) == before


def test_the_target_of_a_link_to_a_folder_is_replaced(tmp_path):
    write(tmp_path / "folder", a="before", b="before")
    (tmp_path / "link").symlink_to("folder")
    with replace_files(tmp_path / "link") as folder:
        write(folder, a="after")
    assert contents(tmp_path / "folder") == {"a": "after", "b": "before"}
    with whole_folder(tmp_path / "link") as folder:
        write(folder, c="after")
    assert contents(tmp_path / "folder") == {"c": "after"}
    assert (tmp_path / "link").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "link"}


@pytest.mark.parametrize("context", [whole_folder, replace_files])
def test_files_are_readable_for_those_whom_the_umask_allows(tmp_path, context):
    for umask, folder_mode, file_mode in ((0o022, 0o755, 0o644), (0o027, 0o750, 0o640)):
        before = os.umask(umask)
        try:
            with context(tmp_path / str(umask)) as folder:
                write(folder, inside__weights="", script="")
                (folder / "inside" / "weights").chmod(0o600)  # as safetensors does
                (folder / "script").chmod(0o700)
        finally:
            os.umask(before)
        made = tmp_path / str(umask)
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (made, made / "inside", made / "inside" / "weights")]
        assert modes == [folder_mode, folder_mode, file_mode]
        assert stat.S_IMODE((made / "script").stat().st_mode) == 0o700 | file_mode


def test_other_files_of_a_folder_are_kept(tmp_path):
    names = ("a_txt", "b_txt", "old_bin", "inside__c_bin", "inside__d_txt", "gone__e_bin")
    write(tmp_path, **dict.fromkeys(names, "before"))
    with replace_files(tmp_path, stale=("*.bin", "*/*.bin", "none/*"), last=("b.txt",)) as folder:
        write(folder, b_txt="after", inside__c_bin="after", new__f="after")
    assert contents(tmp_path) == {
        "a.txt": "before",
        "b.txt": "after",
        "inside/c.bin": "after",
        "inside/d.txt": "before",
        "new/f": "after",
    }


def kill_at_rename(calls, function):
    """Call `function` in a child process that is killed before its `calls`-th rename; False if it has fewer."""
    child = os.fork()
    if child == 0:
        counter = 0

        def counting(rename):
            def renamed(*arguments, **options):
                nonlocal counter
                counter += 1
                if counter == calls:
                    os.kill(os.getpid(), signal.SIGKILL)
                return rename(*arguments, **options)

            return renamed

        Path.replace, Path.rename, Path.unlink = map(counting, (Path.replace, Path.rename, Path.unlink))
        function()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def new_folder(path):
    with whole_folder(path) as folder:
        write(folder, a="after", b="after")


def test_a_whole_folder_survives_a_kill_at_any_moment(tmp_path):
    old, new = {"a": "before", "c": "before"}, {"a": "after", "b": "after"}
    for calls in range(1, 10):
        path = tmp_path / str(calls) / "folder"
        write(path, **old)
        killed = kill_at_rename(calls, lambda path=path: new_folder(path))
        found = contents(path) if path.exists() else None
        assert found in (old, new, None)
        with whole_folder(path) as folder:  # the next call finds what is whole
            assert contents(path) == (found or old)
            write(folder, a="after", b="after")
        assert contents(path.parent) == {"folder/a": "after", "folder/b": "after"}
        if not killed:
            assert calls == 4  # the earlier folder aside, the new one to its place, the earlier one to be deleted
            return
    raise AssertionError("it never ended")


def new_files(path):
    with replace_files(path, stale=("*.old",), last=("mark",)) as folder:
        write(folder, a="after", b="after", mark="after")


def test_marker_files_are_written_last(tmp_path):
    old = {"a": "before", "c.old": "before", "mark": "before", "own": "mine"}
    new = {"a": "after", "b": "after", "mark": "after", "own": "mine"}
    for calls in range(1, 10):
        path = tmp_path / str(calls)
        write(path, a="before", c_old="before", mark="before", own="mine")
        killed = kill_at_rename(calls, lambda path=path: new_files(path))
        found = {name: text for name, text in contents(path).items() if not name.startswith(UNFINISHED)}
        assert found in (old, new) or "mark" not in found
        new_files(path)
        assert contents(path) == new
        if not killed:
            assert calls == 6  # the mark away, two files, the old one away, the mark
            return
    raise AssertionError("it never ended")


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    write(tmp_path / UNFINISHED / "folder", half="half")
    write(tmp_path / UNFINISHED / "folder.removed", half="half")
    write(tmp_path / UNFINISHED / "other", half="of another process that is still at it")
    new_folder(tmp_path / "folder")
    left = f"{UNFINISHED}/other/half"
    assert contents(tmp_path).keys() == {"folder/a", "folder/b", left}
    write(tmp_path / "folder" / UNFINISHED / "files", half="half")
    new_files(tmp_path / "folder")
    assert contents(tmp_path).keys() == {"folder/a", "folder/b", "folder/mark", left}


def test_folders_beside_each_other_are_written_at_the_same_time(tmp_path):
    with whole_folder(tmp_path / "one") as one:
        write(one, a="1")
        with whole_folder(tmp_path / "two") as two, replace_files(tmp_path) as files:
            write(two, a="2")
            write(files, a="3")
        write(one, b="1")
    assert contents(tmp_path) == {"one/a": "1", "one/b": "1", "two/a": "2", "a": "3"}


def test_many_folders_in_one_place_do_not_disturb_each_other(tmp_path, monkeypatch):
    """Each call makes and removes the folder for what is unfinished."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # which takes most of the time
    written = []

    def write_some(name):
        for _ in range(200):
            new_folder(tmp_path / name)
            written.append(name)

    threads = [threading.Thread(target=write_some, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == 800
    assert contents(tmp_path).keys() == {f"{number}/{name}" for number in range(4) for name in "ab"}


def test_folders_are_published_and_removed_by_one_rename(tmp_path):
    write(tmp_path / "staged", a="after")
    write(tmp_path / "final", a="before")
    publish_folder(tmp_path / "staged", tmp_path / "final")
    assert contents(tmp_path / "final") == {"a": "after"}
    remove_folder(tmp_path / "final")
    assert contents(tmp_path) == {UNFINISHED: None}


def test_a_folder_that_cannot_get_its_name_leaves_the_earlier_one(tmp_path, monkeypatch):
    write(tmp_path / "folder", a="before")
    rename = Path.rename

    def fail(path, target):
        if path.parent.name == UNFINISHED and Path(target).parent == tmp_path and path.name == "folder":
            raise OSError("no")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no"):
        new_folder(tmp_path / "folder")
    assert contents(tmp_path) == {"folder/a": "before"}


@pytest.mark.parametrize("context", [whole_folder, replace_files])
def test_a_full_disk_leaves_the_folder_as_it_was(tmp_path, context):
    """A limit on the file size stands for the full disk; a child process, because the limit cannot be raised again."""
    write(tmp_path / "folder", a="before")
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            with context(tmp_path / "folder") as folder:
                write(folder, a="after", large="x" * 100_000)
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == errno.EFBIG
    assert contents(tmp_path) == {"folder/a": "before"}
