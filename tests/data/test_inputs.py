"""What arguments, patterns and standard input stand for."""

import io
import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cvt.data.image import MAX_NAME, MAX_STDIN, BadImage, find_images


def draw(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2), "red").save(path, "PNG")


def found(*arguments, stdin=None):
    """Names of what is found; the sentence of what is not."""
    stream = None if stdin is None else io.BytesIO(stdin)
    return [
        each if isinstance(each, bytes) else str(each)
        for each in find_images([str(each) for each in arguments], stream)
    ]


def test_a_folder_and_what_it_holds_in_vain(tmp_path):
    draw(tmp_path / "a.png", tmp_path / "deep" / "b.png")
    (tmp_path / "list.csv").touch()
    notes = []
    assert len(list(find_images([str(tmp_path)], on_note=notes.append))) == 2
    assert notes == [f"1 file in {tmp_path} is not used: 1 .csv (list.csv)."]
    (told,) = found(tmp_path / "deep" / "b.png", tmp_path / "deep" / ".." / "nothing")[1:]
    assert told == f"{tmp_path}/deep/../nothing"


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "list.csv").touch()
    (told,) = found(tmp_path)
    assert "holds no images; name one that does. 1 file in" in told


def test_a_folder_that_may_not_be_read_is_one_of_the_bad(tmp_path, monkeypatch):
    draw(tmp_path / "a.png", tmp_path / "closed" / "b.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for argument in (tmp_path, f"{tmp_path}/**/*.png"):
        good, bad = find_images([str(argument)])
        assert good == tmp_path / "a.png"
        assert isinstance(bad, BadImage)
        assert str(bad) == f"Cannot read the folder {tmp_path}/closed: Permission denied."


@pytest.mark.parametrize("folder", ["photos [2024]", "a*b", "{a,b}", "what?", "[!x]", "[[]"])
def test_a_part_of_a_pattern_that_exists_means_itself(tmp_path, folder):
    draw(tmp_path / folder / "x" / "0.png", tmp_path / folder / "[x].png")
    assert found(f"{tmp_path}/{folder}/x/*.png") == [f"{tmp_path}/{folder}/x/0.png"]
    assert found(f"{tmp_path}/{folder}/*/*") == [f"{tmp_path}/{folder}/x/0.png"]
    assert found(f"{tmp_path}/{folder}/**/0*") == [f"{tmp_path}/{folder}/x/0.png"]
    assert found(f"{tmp_path}/{folder}/[x].png") == [f"{tmp_path}/{folder}/[x].png"]


def test_patterns(tmp_path, monkeypatch):
    draw(*(tmp_path / name for name in ("a.png", "b/c.png", "b/d/e.png", "b/d/f.jpg", ".h.png")))
    (tmp_path / "b/words.txt").touch()
    monkeypatch.chdir(tmp_path)
    assert found("*.png") == ["a.png"]
    assert found("*") == ["a.png", "b/c.png", "b/d/e.png", "b/d/f.jpg"]
    assert found("**/*.png") == ["a.png", "b/c.png", "b/d/e.png"]
    assert found("b/**/e*") == ["b/d/e.png"]
    assert found("**/d") == ["b/d/e.png", "b/d/f.jpg"]
    assert found("**/b") == ["b/c.png", "b/d/e.png", "b/d/f.jpg"]
    assert found("b/**") == ["b/c.png", "b/words.txt", "b/d/e.png", "b/d/f.jpg"]
    assert found("**/**/d/**/f.*") == ["b/d/f.jpg"]
    assert found("x*", "**/x*") == [
        "No file matches 'x*'; check the pattern.",
        "No file matches '**/x*'; check the pattern.",
    ]


def test_a_deep_pattern_goes_through_each_folder_once(tmp_path):
    draw(tmp_path / "a" / "0.png")
    for name in ("l1", "l2", "l3"):
        (tmp_path / "a" / name).symlink_to(".")
    assert found(f"{tmp_path}/**/*.png") == [f"{tmp_path}/a/0.png"]


def test_a_pattern_opens_no_pipe(tmp_path):
    draw(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    good, bad = found(f"{tmp_path}/*.png")
    assert good == f"{tmp_path}/a.png"
    assert "b.png is no file but a pipe, socket or device" in bad


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\0"])
def test_names_on_stdin_in_any_encoding(end):
    names = [b"a b.png", "é [1].png".encode(), b"caf\xe9.png", " 写真.png ".encode(), b"x"]
    assert found("-", stdin=end.join(names) + end) == [os.fsdecode(each) for each in names]
    assert found("-", stdin=end + end.join(names)) == [os.fsdecode(each) for each in names]


def test_a_name_may_hold_a_line_end_where_names_end_with_nul():
    assert found("-", stdin=b"a\nb.png\0c.png\0") == ["a\nb.png", "c.png"]


def test_a_byte_order_mark_is_no_part_of_a_name():
    assert found("-", stdin=b"\xef\xbb\xbfa.png\n") == ["a.png"]
    (told,) = found("-", stdin="a.png\n".encode("utf-16"))
    assert "UTF-16" in told


@given(names=st.lists(st.text("abc é写/.", min_size=1).filter(str.strip), max_size=400))
def test_however_many_names_come_they_come_one_by_one(names):
    content = "".join(f"{name}\n" for name in names).encode()
    expected = [str(Path(name)) for name in names]
    assert found("-", stdin=content)[: len(names)] == expected or not names


class Endless(io.RawIOBase):
    """A stream that repeats a piece for ever, and counts what was taken of it."""

    def __init__(self, piece):
        self.piece, self.taken, self.rest = piece, 0, b""

    def readable(self):
        return True

    def readinto(self, buffer):
        while len(self.rest) < len(buffer):
            self.rest += self.piece * 1000
        buffer[:], self.rest = self.rest[: len(buffer)], self.rest[len(buffer) :]
        self.taken += len(buffer)
        return len(buffer)


def test_endless_names_are_read_as_they_are_used():
    raw = Endless(b"a.png\n")
    names = find_images(["-"], io.BufferedReader(raw))
    assert {str(each) for each in itertools.islice(names, 5000)} == {"a.png"}
    assert raw.taken < 200_000


def test_a_name_without_end_is_one_sentence():
    raw = Endless(b"abc")
    (told,) = find_images(["-"], io.BufferedReader(raw))
    assert f"a name of more than {MAX_NAME} bytes" in str(told)
    assert raw.taken < 200_000


def test_a_picture_without_end_is_one_sentence(monkeypatch):
    assert MAX_STDIN == 536_870_910
    monkeypatch.setattr("cvt.data.image.MAX_STDIN", 1_000_000)
    for piece in (b"\x89PNG\r\n\x1a\n", b"\0", b"\x01\x02"):
        raw = Endless(piece)
        (told,) = find_images(["-"], io.BufferedReader(raw))
        assert str(told).startswith("stdin holds more than 1 MB, expected one picture")
        assert raw.taken < 3_000_000


def test_a_picture_of_text_is_no_list_of_names():
    content = b"P3\n# words\n2 1\n255\n" + b"1 2 3\n4 5 6\n"
    assert found("-", stdin=content) == [content]


def test_no_stdin():
    assert found("-") == found("-", stdin=b" \n\n") == [str(next(find_images(["-"])))]
    assert "stdin is empty" in found("-")[0]
