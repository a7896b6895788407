"""Our walk through a tar archive against the standard library's."""

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvt.data.tar_index import TarDamage, open_tar, tar_members

FORMATS = (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)
FOLDERS, NAMES = "shard/" * 16, "picture-with-a-long-name-" * 10


def archive(files, kind=tarfile.PAX_FORMAT, **facts):
    """`files`: name and content, in order; content None is a folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            for key, value in facts.items():
                setattr(info, key, value)
            if content is None:
                info.type = tarfile.DIRTYPE
            info.size = len(content or b"")
            tar.addfile(info, io.BytesIO(content or b""))
    return out.getvalue()


def expected(content):
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return [(m.name, m.offset_data, m.size) for m in tar if m.isfile()]


@pytest.mark.parametrize("kind", FORMATS)
def test_names_short_long_and_foreign(kind):
    files = [("a.jpg", b"1" * 512), ("b/c.cls", b""), ("e", None), ("ä/ö.jpg", b"2" * 513)]
    files += [(FOLDERS + "x.jpg", b"3"), (FOLDERS + "y" * 90, b"4")]
    if kind != tarfile.USTAR_FORMAT:
        files += [(NAMES + ".jpg", b"5" * 700), ("after.jpg", b"6")]
    content = archive(files, kind)
    members = [tuple(each) for each in tar_members(content)]
    assert members == expected(content)
    assert len(members) == len(files) - 1


def test_times_with_fractions_as_webdataset_writes_them():
    content = archive([("a.jpg", b"1"), ("b.jpg", b"22")], mtime=1700000000.25)
    assert b"mtime=1700000000.25" in content
    assert [tuple(each) for each in tar_members(content)] == expected(content)


def test_links_are_left_out():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "far/" * 40
        tar.addfile(link)
        info = tarfile.TarInfo("a.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    assert [each.name for each in tar_members(out.getvalue())] == ["a.jpg"]


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_sizes_that_no_octal_field_holds(kind):
    """The content is not there: what matters is that the size is read, and missed."""
    info = tarfile.TarInfo("huge.jpg")
    info.size = 9 << 30
    header = info.tobuf(kind)
    with pytest.raises(TarDamage, match=f"cut short at byte {len(header)}"):
        list(tar_members(header))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.text("abc./é", min_size=1, max_size=120), st.binary(max_size=1500))))
def test_any_archive(files):
    files = [(f"x{name}x", content) for name, content in files]
    content = archive(files)
    assert [tuple(each) for each in tar_members(content)] == expected(content)


def until_damage(content):
    members, walk = [], tar_members(content)
    try:
        members.extend(iter(lambda: next(walk, None), None))
    except TarDamage as damage:
        return members, str(damage)
    return members, ""


def test_cut_short_anywhere():
    """What was whole before the cut is found; that something is missing is always noticed."""
    content = archive([(f"{number}.jpg", bytes([number]) * 600) for number in range(3)])
    ends = [each.start + each.size for each in tar_members(content)]
    for end in range(0, ends[-1] + 400, 128):
        got, damage = until_damage(content[:end])
        assert "at byte" in damage
        assert len(got) == sum(end >= each for each in ends)


def test_something_else_in_the_middle():
    content = archive([("a.jpg", b"1"), ("b.jpg", b"2")])
    damaged = content[:1024] + b"\x07" * 512 + content[1536:]
    members = tar_members(damaged)
    assert next(members).name == "a.jpg"
    with pytest.raises(TarDamage, match="no header at byte 1024"):
        next(members)


def test_a_header_whose_checksum_is_wrong():
    content = bytearray(archive([("a.jpg", b"1")], tarfile.USTAR_FORMAT))
    content[0] ^= 1
    with pytest.raises(TarDamage, match="no header at byte 0"):
        list(tar_members(bytes(content)))


def test_a_pax_record_that_is_none():
    content = bytearray(archive([("a.jpg", b"1")], mtime=1.5))
    content[512:515] = b"xx "
    with pytest.raises(TarDamage, match="unreadable pax record at byte 512"):
        list(tar_members(bytes(content)))


def test_files_are_mapped_not_read(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(archive([("a.jpg", b"1")]))
    assert [each.name for each in tar_members(open_tar(path))] == ["a.jpg"]
    path.write_bytes(b"")
    assert open_tar(path) == b""
