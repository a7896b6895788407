"""Our walk through a tar archive against the standard library's."""

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cvt.data.shards import MOST_NAME, TarDamage
from cvt.data.shards import tar_members as members_of


def tar_members(content):
    return members_of(io.BytesIO(content))


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
    members = [tuple(each[:3]) for each in tar_members(content)]
    assert members == expected(content)
    assert len(members) == len(files) - 1


def test_times_with_fractions_as_webdataset_writes_them():
    content = archive([("a.jpg", b"1"), ("b.jpg", b"22")], mtime=1700000000.25)
    assert b"mtime=1700000000.25" in content
    assert [tuple(each[:3]) for each in tar_members(content)] == expected(content)


def test_links_have_no_content_of_their_own():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "far/" * 40
        tar.addfile(link)
        info = tarfile.TarInfo("a.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    members = [(each.name, each.is_file) for each in tar_members(out.getvalue())]
    assert members == [("link.jpg", False), ("a.jpg", True)]


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
    assert [tuple(each[:3]) for each in tar_members(content)] == expected(content)


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


def header(name, size, kind=b"0"):
    """A ustar header whose size field is exactly these bytes, with the checksum that fits."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[156:157], block[257:265], block[148:156] = kind, b"ustar\x0000", b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def extended(records):
    return header(b"pax", b"%011o\0" % len(records), b"x") + records + bytes(-len(records) % 512)


END = bytes(1024)


@pytest.mark.parametrize(
    "size",
    [
        *(b"-0000000001\0", b"+0000000001\0", b"0o000000001\0", b"0000_000001\0"),
        *(b"\xff" * 12, b"\xff" * 10 + b"\xfe\0", b"\x81" + bytes(11), b"\xb2\xb9 1", b"9\0"),
    ],
)
def test_a_size_that_is_none(size):
    with pytest.raises(TarDamage, match="no header at byte 0"):
        list(tar_members(header(b"a.png", size) + archive([("b.png", b"1")])))


@pytest.mark.parametrize("size", [b"\x80" + b"\xff" * 11, b"77777777777\0", b"00000010000\0"])
def test_a_size_beyond_the_end(size):
    with pytest.raises(TarDamage, match="cut short at byte"):
        list(tar_members(header(b"a.png", size) + END))


@pytest.mark.parametrize(
    "records",
    [
        *(b"14 size=-1536\n", b"12 size=abc\n", b"8 size=\n", b"14 size=1_000\n", b"8 path=a"),
        *(b"xx", b"3\n", b"0 size=1\n", b"99 a=b\n", b"-5 a=b\n", b"6 a=b\n\n"),
        *(b"9" * 5000 + b" a=b\n", b"5011 size=" + b"1" * 5000 + b"\n"),
        b"9 size=1\n14 size=-1536\n",
    ],
)
def test_pax_records_that_are_none(records):
    content = extended(records) + header(b"a.png", b"00000000000\0") + END
    with pytest.raises(TarDamage, match=r"pax record.*at byte 512"):
        list(tar_members(content))


def test_pax_records_without_end():
    with pytest.raises(TarDamage, match="pax records of over 1048576 bytes at byte 512"):
        list(tar_members(extended(b"5 a=\n" * 300_000) + END))


@pytest.mark.parametrize("kind", ["long name", "pax"])
def test_of_a_long_name_only_so_much_is_kept(kind):
    name = b"n" * 500_000 + b".png"
    if kind == "long name":
        before = header(b"@", b"%011o\0" % len(name), b"L") + name + bytes(-len(name) % 512)
    else:
        before = extended(b"500017 path=" + name + b"\n")
    first, second = tar_members(before + header(b"x", b"00000000000\0") + archive([("b", b"")]))
    assert len(first.name) == MOST_NAME + 1
    assert second.name == "b"


def test_archives_joined_to_one_file():
    content = archive([("a.jpg", b"1")]) + archive([("b.jpg", b"22")])
    assert [each.name for each in tar_members(content)] == ["a.jpg", "b.jpg"]
    with pytest.raises(TarDamage, match="no header at byte 1024"):
        list(tar_members(archive([("a.jpg", b"1")])[:1024] + b"<html>" * 200))


def test_zeros_without_end(tmp_path):
    """A file of holes takes no room on the disk, and looks a terabyte long."""
    path = tmp_path / "a.tar"
    path.write_bytes(archive([("a.jpg", b"1")]))
    with open(path, "r+b") as file:
        file.truncate(2**40)
        members = members_of(file)
        assert next(members).name == "a.jpg"
        with pytest.raises(TarDamage, match="more than 1048576 zeros"):
            next(members)


def test_a_name_that_is_no_utf_8():
    names = [each.name for each in tar_members(header(b"caf\xe9.jpg", b"0") + END)]
    assert names == ["caf\udce9.jpg"]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_headers_say_the_walk_goes_forward(data):
    """Fields of several kinds, each with a checksum that fits: it ends, inside of the file."""
    sizes = st.one_of(st.binary(max_size=12), st.integers(0, 3000).map(lambda n: b"%011o\0" % n))
    names = st.binary(max_size=20)
    kinds = st.sampled_from([b"0", b"5", b"2", b"L", b"K", b"x", b"g", b"S", b"V", b"\0"])
    blocks = st.one_of(
        st.builds(header, names, sizes, kinds),
        st.builds(extended, st.sampled_from([b"12 path=abc\n", b"9 size=7\n", b"10 size=-1\n"])),
        st.binary(min_size=512, max_size=512),
        st.just(bytes(512)),
    )
    content = b"".join(data.draw(st.lists(blocks, max_size=12)))
    members, _ = until_damage(content)
    place = 0
    for each in members:
        assert place < each.start <= each.start + each.size <= len(content)
        place = each.start + each.size
