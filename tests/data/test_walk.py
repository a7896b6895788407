"""Every image that folders, patterns and stdin stand for is found once; all else is counted."""

import io
import itertools
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cvt.data import BadImage, find_images
from cvt.data.walk import (
    MAX_NAME,
    MAX_STDIN,
    LeftOut,
    files_below,
    images_below,
    is_hidden,
    why_not,
)


def draw(path, kind="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2), "red").save(path, kind)


def walked(*folders):
    left_out = LeftOut()
    found = [(number, path) for number, path in images_below(folders, left_out)]
    return found, left_out


def below(folder):
    """Paths from the folder, and what is said about the rest."""
    found, left_out = walked(folder)
    names = [os.path.relpath(path, folder) for _, path in found]
    return names, left_out.sentences(folder), left_out.unreadable


def test_files_come_before_subfolders_in_the_order_of_names(tmp_path):
    for name in ("b/1.png", "z.png", "a/2.JPG", "a/10.png", "c.png"):
        draw(tmp_path / name)
    assert below(tmp_path)[0] == ["c.png", "z.png", "a/10.png", "a/2.JPG", "b/1.png"]


def test_all_that_is_not_used_is_counted_by_kind_and_named(tmp_path):
    draw(tmp_path / "a.png")
    for name in ("x/1.txt", "x/2.txt", "1.XML", "empty", "notes"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("word" if name == "notes" else "")
    names, told, _ = below(tmp_path)
    assert names == ["a.png"]
    assert told == [
        f"5 files in {tmp_path} are not used: 2 .txt (such as x/1.txt), "
        "2 files without a suffix (such as empty), 1 .xml (1.XML)."
    ]


def test_many_kinds_are_summed_up(tmp_path):
    for number in range(20):
        for letter in "abcdefghijk"[: 1 + number % 11]:
            (tmp_path / f"{number}.{letter}").touch()
    (told,) = below(tmp_path)[1]
    assert " of 3 other kinds." in told
    assert len(told) < 400 + len(str(tmp_path))


@pytest.mark.parametrize("name", ["IMG_0001", "image.001", "photo.jpg?w=1200", "Shot 12.30.45"])
def test_a_file_without_a_suffix_is_known_by_what_it_holds(tmp_path, name):
    draw(tmp_path / name, "JPEG")
    (tmp_path / "words.001").write_text("a number of words")
    assert below(tmp_path)[0] == [name]


@pytest.mark.parametrize("name", ["copy.png.bak", "raw.nef", "picture.txt"])
def test_another_suffix_is_believed(tmp_path, name):
    draw(tmp_path / name)
    assert below(tmp_path)[0] == []


def test_what_systems_leave_behind_is_passed_over_in_silence(tmp_path):
    draw(tmp_path / "a.png")
    for name in (".hidden.png", "__MACOSX/a.png", "__MACOSX/._a.png", "@eaDir/b.png", "a.png~"):
        draw(tmp_path / name)
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "Icon\r"):
        (tmp_path / name).touch()
    assert below(tmp_path) == (["a.png"], [], [])


def test_pipes_sockets_and_devices_are_never_opened(tmp_path, monkeypatch):
    draw(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.png").symlink_to("pipe.png")
    (tmp_path / "null.png").symlink_to("/dev/null")
    monkeypatch.chdir(tmp_path)  # a socket's path may be no longer than a hundred letters
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.png")
        names, told, _ = below(tmp_path)
    assert names == ["a.png"]
    assert "3 named pipes (such as pipe)" in told[0]
    assert "1 socket (socket.png)" in told[0]
    assert "1 device (null.png)" in told[0]


def test_a_link_to_where_it_lies_multiplies_nothing(tmp_path):
    draw(tmp_path / "data/a/0.png")
    draw(tmp_path / "data/b/1.png")
    for number, target in enumerate((".", "..", "../..", "../b", "loop")):
        name = "loop" if target == "loop" else f"l{number}"
        (tmp_path / "data/a" / name).symlink_to(target)
    found, left_out = walked(tmp_path / "data/a", tmp_path / "data/b")
    assert [(number, os.path.basename(path)) for number, path in found] == [
        (0, "0.png"),
        (1, "1.png"),
    ]
    (told,) = left_out.sentences(tmp_path)
    assert "4 links to what is found without them (such as data/a/l0)" in told
    assert "1 broken link (data/a/loop)" in told


def test_linked_folders_and_files_are_followed_once(tmp_path):
    draw(tmp_path / "store/deep/0.png")
    draw(tmp_path / "store/1.png")
    draw(tmp_path / "data/a/2.png")
    (tmp_path / "data/a/first").symlink_to(tmp_path / "store")
    (tmp_path / "data/a/second").symlink_to(tmp_path / "store/deep")
    (tmp_path / "data/a/third.png").symlink_to(tmp_path / "store/1.png")
    (tmp_path / "data/a/fourth.png").symlink_to("2.png")
    (tmp_path / "data/b").symlink_to("a")
    names, told, _ = below(tmp_path / "data")
    assert names == ["a/2.png", "a/first/1.png", "a/first/deep/0.png"]
    assert "4 links to what is found without them" in told[0]
    assert next(path for _, path in walked(tmp_path / "data/b")[0]) == f"{tmp_path}/data/b/2.png"


def test_an_image_belongs_where_it_is_not_where_a_link_is(tmp_path):
    """However early the link comes."""
    draw(tmp_path / "b/0.png")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x.png").symlink_to("../b/0.png")
    (tmp_path / "a/b").symlink_to("../b")
    found, _ = walked(tmp_path / "a", tmp_path / "b")
    assert found == [(1, f"{tmp_path}/b/0.png")]


def test_a_missing_image_is_kept_so_that_opening_it_names_it(tmp_path):
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "gone").symlink_to("nowhere")
    names, told, _ = below(tmp_path)
    assert names == ["gone.png"]
    assert "1 broken link (gone)" in told[0]


def test_what_may_not_be_read_is_named(tmp_path, monkeypatch):
    draw(tmp_path / "a/0.png")
    draw(tmp_path / "closed/1.png")
    (tmp_path / "nameless").touch()
    scandir, error = os.scandir, PermissionError(13, "Permission denied")

    def refuse(path):
        if path.endswith("closed"):
            raise error
        return scandir(path)

    def refuse_reading(path):
        if path.endswith("nameless"):
            raise error
        return why_not(path)

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr("cvt.data.walk.why_not", refuse_reading)
    names, told, unreadable = below(tmp_path)
    assert (names, told) == (["a/0.png"], [])
    assert unreadable == [
        f"Cannot read {tmp_path}/nameless: Permission denied.",
        f"Cannot read the folder {tmp_path}/closed: Permission denied.",
    ]


def test_names_of_any_bytes_and_depth(tmp_path):
    draw(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
    deep = tmp_path
    for _ in range(90):
        deep = deep / "d"
    draw(deep / "x.png")
    names = below(tmp_path)[0]
    assert names[0] == "caf\udce9.png"
    assert len(names) == 2


# A tree: folders a to c, each with some files and links to any of the places.
PLACES = ("", "a", "a/b", "a/b/c", "d", "d/e")
trees = st.tuples(
    st.lists(st.tuples(st.sampled_from(PLACES), st.integers(0, 3)), max_size=8),
    st.lists(st.tuples(st.sampled_from(PLACES), st.sampled_from(PLACES)), max_size=6),
)


@settings(max_examples=40)
@given(tree=trees, start=st.sampled_from(PLACES))
def test_whatever_the_links_each_real_file_comes_once(tree, start, tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    files, links = tree
    for place in PLACES:
        (root / place).mkdir(parents=True, exist_ok=True)
    for place, number in files:
        (root / place / f"{number}.png").touch()
    for number, (place, target) in enumerate(links):
        (root / place / f"link{number}").symlink_to(root / target)
    found = [path for _, path in walked(root / start)[0]]
    real = [os.path.realpath(path) for path in found]
    assert len(set(real)) == len(real)
    here = {str(path) for path in (root / start).rglob("*.png")}  # does not follow links
    assert here <= set(found)
    assert sorted(files_below(str(root / start), LeftOut())) == sorted(found)


@pytest.mark.parametrize("name", ["a.png", "train", "Icon", "#1", "lost", "a~b"])
def test_other_names_are_not_hidden(name):
    assert not is_hidden(name)


def found(*arguments, stdin=None):
    """Names of what is found; the sentence of what is not."""
    stream = None if stdin is None else io.BytesIO(stdin)
    return [
        each if isinstance(each, bytes) else str(each)
        for each in find_images([str(each) for each in arguments], stream)
    ]


def test_a_folder_and_what_it_holds_in_vain(tmp_path):
    draw(tmp_path / "a.png")
    draw(tmp_path / "deep" / "b.png")
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
    draw(tmp_path / "a.png")
    draw(tmp_path / "closed" / "b.png")
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
    draw(tmp_path / folder / "x" / "0.png")
    draw(tmp_path / folder / "[x].png")
    assert found(f"{tmp_path}/{folder}/x/*.png") == [f"{tmp_path}/{folder}/x/0.png"]
    assert found(f"{tmp_path}/{folder}/*/*") == [f"{tmp_path}/{folder}/x/0.png"]
    assert found(f"{tmp_path}/{folder}/**/0*") == [f"{tmp_path}/{folder}/x/0.png"]
    assert found(f"{tmp_path}/{folder}/[x].png") == [f"{tmp_path}/{folder}/[x].png"]


def test_patterns(tmp_path, monkeypatch):
    for name in ("a.png", "b/c.png", "b/d/e.png", "b/d/f.jpg", ".h.png"):
        draw(tmp_path / name)
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


def test_an_image_without_end_is_one_sentence(monkeypatch):
    assert MAX_STDIN == 536_870_910
    monkeypatch.setattr("cvt.data.walk.MAX_STDIN", 1_000_000)
    for piece in (b"\x89PNG\r\n\x1a\n", b"\0", b"\x01\x02"):
        raw = Endless(piece)
        (told,) = find_images(["-"], io.BufferedReader(raw))
        assert str(told).startswith("stdin holds more than 1 MB, expected one image")
        assert raw.taken < 3_000_000


def test_an_image_of_text_is_no_list_of_names():
    content = b"P3\n# words\n2 1\n255\n" + b"1 2 3\n4 5 6\n"
    assert found("-", stdin=content) == [content]


def test_no_stdin():
    assert found("-") == found("-", stdin=b" \n\n") == [str(next(find_images(["-"])))]
    assert "stdin is empty" in found("-")[0]
