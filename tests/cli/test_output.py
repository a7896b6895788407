"""Tables and lines of a verb, in terminals of any width and in pipes."""

import io
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as some
from rich.cells import cell_len
from rich.progress import Progress

from cvt.cli.output import Bar, image_bar, print_json, print_table, say
from cvt.errors import shown
from cvt.tables import Table

WORDS = some.text(max_size=30) | some.from_regex(r"[a-z]{0,90}|\d{1,9}", fullmatch=True)
PUBLISHED = "cvt_13.msft_in22k_ft_in1k_384"


@pytest.fixture
def terminal(monkeypatch):
    """`terminal(80)`: a screen of so many columns from now on."""

    def become(columns):
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)

    monkeypatch.setenv("NO_COLOR", "1")
    return become


def printed(capsys):
    out = capsys.readouterr().out.replace("\x1b[1m", "").replace("\x1b[0m", "")
    return out.splitlines()


@given(
    table=some.integers(1, 6).flatmap(
        lambda width: some.lists(some.tuples(*[WORDS] * width), min_size=1, max_size=4)
    ),
    columns=some.integers(20, 160),
)
def test_nothing_is_lost_or_too_wide(table, columns):
    headers = [f"Header {number}" for number in range(len(table[0]))]
    with pytest.MonkeyPatch.context() as patch:
        screen = io.StringIO()
        screen.isatty = lambda: True
        patch.setattr("sys.stdout", screen)
        for name, value in (("COLUMNS", str(columns)), ("TERM", "xterm"), ("NO_COLOR", "1")):
            patch.setenv(name, value)
        print_table(Table(columns=tuple(headers), rows=tuple(table)))
    out = screen.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert all(cell_len(line) <= columns for line in out.split("\n"))
    cells = Counter("".join(shown(cell) for row in table for cell in row[1:]))
    got = Counter(out)
    assert all(got[letter] >= count for letter, count in cells.items() if not letter.isspace())


@given(some.lists(some.tuples(WORDS, WORDS, WORDS), min_size=1, max_size=4))
def test_in_a_pipe_every_row_is_a_line_without_blanks_behind(table):
    with pytest.MonkeyPatch.context() as patch:
        pipe = io.StringIO()
        patch.setattr("sys.stdout", pipe)
        patch.setenv("COLUMNS", "20")
        print_table(Table(columns=("Name", "What", "Number"), rows=tuple(table)))
    head, *lines, end = pipe.getvalue().split("\n")
    assert (len(lines), end) == (len(table), "")
    assert all(line == line.rstrip() for line in (head, *lines))
    for line, row in zip(lines, table, strict=True):
        assert all(shown(cell).rstrip() in line for cell in row)


def test_names_to_type_are_whole_at_80_columns(terminal, capsys):
    terminal(80)
    columns = ("Published weights", "Top-1 %", "Side", "Hub id", "Reported by")
    row = (PUBLISHED, "83.3", "384", "microsoft/cvt-13-384-22k", "paper, Table 3")
    print_table(Table(columns=columns, rows=(row, row)))
    lines = printed(capsys)
    assert max(map(len, lines)) <= 80
    assert sum(PUBLISHED in line and "microsoft/cvt-13-384-22k" in line for line in lines) == 2


def test_what_does_not_fit_goes_on_below_with_the_first_column_again(terminal, capsys):
    names = [f"digits-cvt_nano_32-20261128-10445{number}" for number in (5, 6)]
    table = Table(
        columns=("Run", "Model", "Parameters", "Epochs", "Images/s", "Time"),
        rows=tuple(
            (name, "cvt_nano_32", "566 k", "20/30", "1,234", "2 min 10 s") for name in names
        ),
    )
    terminal(80)
    print_table(table)
    narrow = printed(capsys)
    assert max(map(len, narrow)) <= 80
    assert all(sum(name in line for line in narrow) == 2 for name in names)
    terminal(140)
    print_table(table)
    wide = printed(capsys)
    assert len(wide) == 3
    assert all(word in wide[1] for word in table.rows[0])


def test_strangers_can_write_no_lines_of_their_own(capsys):
    name = "a\n  99.99%  cat\x1b[2J\u202e :smile: [red]"
    print_table(Table(columns=("Class", "n"), rows=((name, "1"),)))
    say(name)
    say(name, error=True)
    out, err = capsys.readouterr()
    assert [len(out.splitlines()), len(err.splitlines())] == [3, 1]
    for text in (out, err):
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "\\x1b[2J\\u202e :smile: [red]" in text


def test_figures_stand_right_and_names_that_begin_with_digits_left(capsys):
    rows = (("2026-a", "2 min 10 s"), ("02134", "5 s"))
    print_table(Table(columns=("Run", "Time"), rows=rows))
    assert capsys.readouterr().out.splitlines()[2] == "02134          5 s"


def test_json_has_only_numbers_that_json_has(capsys):
    print_json({"loss": float("nan"), "rows": [(1.5, float("-inf")), {"a": 2}]})
    assert capsys.readouterr().out == '{"loss": null, "rows": [[1.5, null], {"a": 2}]}\n'


def test_json_is_one_line_and_harmless(capsys):
    print_json({"image": "a\n\x1b[2J\u2028é"})
    assert capsys.readouterr().out == '{"image": "a\\n\\u001b[2J\\u2028é"}\n'


def test_a_table_is_described_by_its_columns_and_printed_with_title_and_notes(capsys):
    @dataclass
    class Score:
        name: str
        top1: float | None

    columns = {"Name": "name", "Top-1 %": "top1:.2f", "Letters": lambda score: len(score.name)}
    scores = [Score("cvt_13", 81.6), Score("new", None)]
    print_table(Table.of(scores, columns, title="Scores", notes=("Of one seed.",)))
    print_json(scores[1])
    assert capsys.readouterr().out.splitlines() == [
        *("Scores", "", "Name    Top-1 %  Letters", "cvt_13    81.60        6"),
        *("new           -        3", "", "Of one seed.", '{"name": "new", "top1": null}'),
    ]


def test_each_stage_begins_anew():
    progress = Progress(disable=True)
    bar = Bar(progress)
    bar.stage("features of train")
    bar.start(10)
    bar.advance(4)
    (task,) = progress.tasks
    assert (task.description, task.completed, task.total) == ("features of train", 4, 10)
    bar.start(3)
    assert (progress.tasks[0].completed, progress.tasks[0].total) == (0, 3)
    bar.stage("linear")
    (task,) = progress.tasks
    assert (task.description, task.completed, task.total) == ("linear", 0, None)


def test_nothing_is_shown_where_there_is_no_terminal(capfd):
    with image_bar(shown=True) as bar:
        bar.start(2)
        bar.advance(2)
    assert capfd.readouterr() == ("", "")
