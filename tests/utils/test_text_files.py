"""Line-aligned files: what a line is, and one clear sentence for each kind of file that cannot be used."""

import bz2
import gzip
import lzma

import pytest

from modeling_jmnat.utils.text_files import iterate_lines, read_lines, read_parallel, write_lines

TEXT = "eins\nzwei drei\r\n\n  vier\u2028fünf\x0b\x85 \n"
ZSTD = bytes.fromhex("28b52ffd04582100006775740a6ac09cd9")  # "gut" by the program zstd
LINES = ["eins", "zwei drei", "", "  vier\u2028fünf\x0b\x85 "]


@pytest.mark.parametrize("name", ["text.de", "text.de.gz"])
def test_line_feeds_and_carriage_returns_end_a_line(tmp_path, name):
    path = tmp_path / name
    data = TEXT.encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert list(iterate_lines(path)) == LINES
    assert read_lines(str(path)) == LINES


@pytest.mark.parametrize(
    "text", ["a\rb\r", "a\r\nb\rc\nd", "\r\r\n\n", "a\r", "\r", "a\n\rb", "a\x0bb\x1c\x85\u2029\rc\n", "a"]
)
def test_lines_are_those_of_pythons_text_mode(tmp_path, text):
    (tmp_path / "a").write_bytes(text.encode())
    with open(tmp_path / "a", encoding="utf-8") as file:
        expected = [line.removesuffix("\n") for line in file]
    assert list(iterate_lines(tmp_path / "a")) == expected


@pytest.mark.parametrize("name", ["windows.de", "windows.de.gz"])
def test_a_byte_order_mark_is_removed(tmp_path, name):
    data = "\ufeffeins\r\n\ufeffzwei\r\n".encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert read_lines(tmp_path / name) == ["eins", "\ufeffzwei"]


def test_last_line_may_lack_its_line_end(tmp_path):
    (tmp_path / "a").write_bytes(b"one\ntwo")
    assert read_lines(tmp_path / "a") == ["one", "two"]


def test_lines_are_read_one_at_a_time(tmp_path):
    (tmp_path / "a").write_bytes(b"good\n\xff\n")
    lines = iterate_lines(tmp_path / "a")
    assert next(lines) == "good"  # the bad second line has not been looked at
    with pytest.raises(ValueError, match="line 2 is not valid UTF-8"):
        next(lines)


@pytest.mark.parametrize("bad", [b"\xff", b"gr\xfcn", b"\xed\xa0\x80", "grün".encode("utf-16")])
def test_invalid_utf8_names_file_and_line(tmp_path, bad):
    path = tmp_path / "bad.de"
    path.write_bytes("gut\ngrün\n".encode() + bad + b"\nmore\n")
    with pytest.raises(ValueError, match=r"bad\.de: line 3 is not valid UTF-8"):
        read_lines(path)


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        ("grün\n".encode("latin-1"), "convert it, for example by `iconv -f latin1 -t utf-8`"),
        ("grün\n".encode("utf-16"), "it looks like UTF-16"),
        (b"\xfe\xff" + "grün\n".encode("utf-16-be"), "it looks like UTF-16"),
        (gzip.compress(b"gut\n", mtime=0), "it is compressed; give it a name that ends in .gz"),
        (bz2.compress(b"gut\n"), "it is compressed by bzip2; unpack it first, for example by `bzip2 -d`"),
        (lzma.compress(b"gut\n"), "it is compressed by xz; unpack it first, for example by `xz -d`"),
        (ZSTD, "it is compressed by zstd; unpack it first, for example by `zstd -d`"),
    ],
)
def test_other_encodings_come_with_advice(tmp_path, data, advice):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ValueError, match=rf"line 1 is not valid UTF-8 .*: {advice}"):
        read_lines(tmp_path / "a")


def test_a_packed_file_whose_first_line_is_text_is_recognised(tmp_path):
    """The checksum after the ten letters that begin every file of bzip2 may have a line feed."""
    (tmp_path / "a").write_bytes(bz2.compress(b"gut\n")[:10] + b"\n\xff\xff\xff")
    with pytest.raises(ValueError, match="line 2 is not valid UTF-8 .*: it is compressed by bzip2"):
        read_lines(tmp_path / "a")


def test_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.de").write_bytes(b"")
    (tmp_path / "empty.de.gz").write_bytes(gzip.compress(b""))
    for name in ("empty.de", "empty.de.gz"):
        with pytest.raises(ValueError, match=f"{name}: the file is empty"):
            read_lines(tmp_path / name)


def test_damaged_gzip_names_the_file(tmp_path):
    whole = gzip.compress("".join(f"line {i * i}\n" for i in range(5000)).encode())
    flipped = bytearray(whole)
    for position in range(len(whole) // 2, len(whole) // 2 + 40):
        flipped[position] ^= 0xFF
    damaged = {"cut": whole[: len(whole) // 2], "flipped": bytes(flipped), "plain": b"no gzip at all\n"}
    for name, data in damaged.items():
        path = tmp_path / f"{name}.gz"
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name}\.gz: (not a complete gzip file|line \d+ is not valid UTF-8)"):
            read_lines(path)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.de"):
        read_lines(tmp_path / "nowhere.de")
    with pytest.raises(IsADirectoryError):
        read_lines(tmp_path)


def test_parallel_files_need_the_same_number_of_lines(tmp_path):
    (tmp_path / "a.de").write_text("eins\nzwei\n")
    (tmp_path / "a.en").write_text("one\ntwo\nthree\n")
    with pytest.raises(ValueError, match=r"a\.de has 2 lines and .*a\.en has 3"):
        read_parallel(tmp_path / "a.de", tmp_path / "a.en")
    (tmp_path / "b.en").write_text("one\n\n")
    assert read_parallel(tmp_path / "a.de", tmp_path / "b.en") == (["eins", "zwei"], ["one", ""])


@pytest.mark.parametrize("name", ["text.de", "text.de.gz"])
def test_what_is_written_is_read_back(tmp_path, name):
    write_lines(tmp_path / name, iter(LINES))
    assert read_lines(tmp_path / name) == LINES
    data = (tmp_path / name).read_bytes()
    data = gzip.decompress(data) if name.endswith(".gz") else data
    assert data == TEXT.replace("\r", "").encode()


def test_a_text_of_two_lines_is_refused(tmp_path):
    write_lines(tmp_path / "a", ["before"])
    with pytest.raises(ValueError, match=r"a: text 2 has a line break \('zwei\\ndrei'\) but must be a single line"):
        write_lines(tmp_path / "a", ["eins", "zwei\ndrei"])
    with pytest.raises(ValueError, match="text 1 has a line break"):
        write_lines(tmp_path / "a", ["drei\rvier"])
    assert (tmp_path / "a").read_text() == "before\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
