import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvt.bench.names import Contender, check_labels, read_contender
from cvt.errors import UserError

words = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True).filter(
    lambda word: word not in ("true", "false", "null")
)
scalars = st.one_of(words, st.integers(0, 99), st.booleans())


def write(value):
    if isinstance(value, list):
        return f"[{','.join(map(write, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


@given(words, st.dictionaries(words, st.one_of(scalars, st.lists(scalars, min_size=1)), max_size=3))
def test_reads_a_name_with_changes(model, changes):
    text = model + "+" * bool(changes)
    text += ",".join(f"{name}={write(value)}" for name, value in changes.items())
    found = read_contender(text)
    assert found == Contender(label=text, model=model, model_args=changes)


def test_dashes_are_underscores_and_blanks_do_not_matter():
    found = read_contender("cvt_13+kv-stride=1, projection=[conv, conv, linear]")
    assert found.model_args == {"kv_stride": 1, "projection": ["conv", "conv", "linear"]}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("cvt_13+", "FIELD=VALUE"),
        ("cvt_13+kv_stride", "kv_stride"),
        ("cvt_13+kv_stride=", "FIELD=VALUE"),
        ("cvt_13+=1", "FIELD=VALUE"),
        ("cvt_13+kv_stride=1,,projection=linear", "FIELD=VALUE"),
        ("cvt_13+kv_stride=1,kv_stride=2", "kv_stride twice"),
        ("cvt_13+kv_stride={", "kv_stride"),
    ],
)
def test_mistakes(text, word):
    with pytest.raises(UserError, match=word):
        read_contender(text)


def test_every_contender_has_a_name_and_a_folder_of_its_own():
    check_labels([read_contender("a"), read_contender("b")])
    with pytest.raises(UserError, match="no model"):
        check_labels([])
    with pytest.raises(UserError, match="two contenders called 'a'"):
        check_labels([read_contender("a"), read_contender("a")])
    with pytest.raises(UserError, match="a_b"):
        check_labels([Contender(label="a/b", model="a"), Contender(label="a:b", model="a")])


def test_a_network_has_one_label():
    found = Contender.of("cvt_13", {"projection": ["conv", "conv", "linear"], "kv_stride": 1})
    assert found.label == "cvt_13+kv_stride=1,projection=[conv,conv,linear]"
    assert found == read_contender(found.label)
    assert Contender.of("cvt_13", {}).label == "cvt_13"


def test_a_folder_is_one_folder():
    assert Contender(label="../etc/ x", model="a").folder == ".._etc_x"
    assert read_contender("cvt_13+kv_stride=1").folder == "cvt_13+kv_stride=1"
