import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from contests import SMALL, FakeWork, accuracy, contest, lines, trained
from cvt.bench.contest.contest import ContestStopped
from cvt.bench.contest.recipe import Budget
from cvt.bench.contest.runs import COMPARISON, PACE, TRAIN
from cvt.bench.folder import ResultsFolder
from cvt.bench.names import Contender
from cvt.bench.speed.measure import TAKE_TURNS
from cvt.errors import UserError
from cvt.zoo.describe import describe

COUNTED = cache(describe)


@pytest.fixture(autouse=True)
def counted_once(monkeypatch):
    """Counting a network takes half a second, and these tests have the same three all over."""
    monkeypatch.setattr("cvt.bench.contest.recipe.describe", COUNTED)


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """The pictures that would have been drawn, which takes most of a second each."""
    drawn = []
    monkeypatch.setattr(
        "cvt.bench.contest.contest.save_plot", lambda path, results: drawn.append(path)
    )
    return drawn


NAMES = ("cvt_nano_32", "cvt_nano_32+depth=1", "cvt_nano_32+kv_stride=1")


def test_all_are_told_the_same_but_for_the_model(tmp_path):
    do = FakeWork()
    contest(tmp_path / "out", NAMES, do, seeds=2)
    told = do.configs
    assert [each.seed for each in told] == [0, 0, 0, 1, 1, 1]
    assert [each.model_args.get("kv_stride") for each in told] == [None, None, 1] * 2
    assert {each.updates for each in told} == {2 * (1259 // 32)}
    shared = [
        {**vars(each), "model": None, "model_args": {}, "seed": 0, "out": None} for each in told
    ]
    assert all(each == shared[0] for each in shared)
    assert shared[0]["optim"]["lr"] == pytest.approx(16e-3 * 32 / 512)
    assert "epochs" not in shared[0]
    assert all(each.model_args["img_size"] == [8, 8] for each in told)
    assert len({each.out for each in told}) == 6


def test_what_was_measured_is_in_the_results_and_in_the_table_of_runs(tmp_path):
    results = contest(tmp_path / "out", NAMES, seeds=2)
    one = results.of("cvt_nano_32+depth=1")
    assert one.runs[1].top1 == one.scores[1]
    assert one.runs[1].val_top1 == pytest.approx(one.scores[1] - 1)
    assert one.runs[1].train_images_per_s == 400
    assert one.runs[1].memory_mb == 303
    assert one.runs[1].seconds == 6
    assert one.runs[1].images == one.runs[1].updates * 32
    assert one.inference_images_per_s == 1001
    assert one.num_params == 363_594
    assert results.facts["split"] == "test"
    rows = lines(tmp_path / "out")
    assert [(row["label"], row["seed"]) for row in rows] == [
        (label, str(seed)) for label in NAMES for seed in (0, 1)
    ]
    assert {row["inference_images_per_s"] for row in rows[2:4]} == {"1001.0"}
    assert ResultsFolder(tmp_path / "out", COMPARISON).rows[3] == one.runs[1]


def test_the_best_stands_first_in_the_table_and_a_picture_is_drawn(tmp_path, drawn):
    contest(tmp_path / "out", NAMES, seeds=2)
    text = (tmp_path / "out" / "table.md").read_text()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| cvt")]
    means = [float(row[1].split()[0]) for row in rows]
    assert means == sorted(means, reverse=True)
    assert "±" in rows[0][1]
    assert drawn == [tmp_path / "out" / "accuracy.png"]


@pytest.mark.parametrize("how", ["stop_at", "kill_at"])
@pytest.mark.parametrize("piece", [1, 3, 7])
def test_interrupted_it_goes_on_to_the_same_results(tmp_path, how, piece):
    whole = contest(tmp_path / "whole", NAMES, seeds=2)
    first, second = FakeWork(**{how: piece}), FakeWork()
    with pytest.raises(ContestStopped if how == "stop_at" else SystemExit):
        contest(tmp_path / "parts", NAMES, first, seeds=2)
    done = len(lines(tmp_path / "parts")) if piece > 1 or how == "stop_at" else 0
    assert done == piece - 1
    results = contest(tmp_path / "parts", NAMES, second, seeds=2)
    assert results == whole
    assert len(second.asked) == 7 - done
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")


def test_stopped_it_says_how_far_it_got(tmp_path):
    with pytest.raises(ContestStopped, match="Stopped after 2 of 4 runs; the same command goes on"):
        contest(tmp_path / "out", do=FakeWork(stop_at=3))


def test_a_run_that_ended_as_we_were_killed_is_read_and_not_made_again(tmp_path):
    with pytest.raises(SystemExit):
        contest(tmp_path / "out", do=(do := FakeWork(kill_at=2)))
    trained(do.configs[1])
    again = FakeWork()
    results = contest(tmp_path / "out", do=again)
    assert len(again.configs) == 2
    assert results.of("cvt_nano_32+depth=1").scores[0] == accuracy(do.configs[1])


def test_finished_it_is_only_read(tmp_path):
    first = contest(tmp_path / "out")
    do = FakeWork()
    assert contest(tmp_path / "out", do=do) == first
    assert do.asked == []


def test_one_that_fails_is_reported_and_the_rest_goes_on(tmp_path):
    names = ("cvt_nano_32", Contender(label="bad", model="cvt_mini_32"))
    do = FakeWork(broken={"cvt_mini_32": "Its process was ended by signal 9."})
    results = contest(tmp_path / "out", names, do)
    assert results.has_failures
    assert results.of("bad").errors == {0: "Its process was ended by signal 9.", 1: results.of(
        "bad").runs[1].error}  # fmt: skip
    assert results.of("bad").top1 is None
    assert len(results.of("cvt_nano_32").scores) == 2
    assert list(do.asked[-1][1]["models"]) == ["cvt_nano_32"]
    text = (tmp_path / "out" / "table.md").read_text()
    assert "bad failed with seed 0, 1: Its process was ended by signal 9." in text
    assert "0 (2 failed)" in text
    again = FakeWork()
    results = contest(tmp_path / "out", names, again)
    assert not results.has_failures
    assert [each.model for each in again.configs] == ["cvt_mini_32"] * 2
    assert list(again.asked[-1][1]["models"]) == ["cvt_nano_32", "bad"]


def test_more_models_and_more_seeds_may_join(tmp_path):
    contest(tmp_path / "out", NAMES[:1], seeds=1)
    do = FakeWork()
    results = contest(tmp_path / "out", NAMES[:2], do, seeds=2)
    assert [(each.model_args.get("depth"), each.seed) for each in do.configs] == [
        (1, 0),
        (None, 1),
        (1, 1),
    ]
    assert all(len(each.scores) == 2 for each in results.standings)
    contest(tmp_path / "out", NAMES[1::-1], seeds=2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": NAMES[:1]}, r"cvt_nano_32\+depth=1 takes part there"),
        ({"names": (NAMES[0], Contender(label=NAMES[1], model="cvt_mini_32"))}, "is .* there, and"),
        ({"seeds": 1}, "2 seeds, and now there are 1"),
        ({"budget": Budget(amount=3, unit="epochs")}, "budget is 2 epochs there, and 3 epochs now"),
        ({"recipe": {**SMALL, "batch_size": 64}}, "batch_size is 32 there, and 64 now"),
        ({"recipe": {**SMALL, "image_size": 16}}, "image_size is 8 there, and 16 now"),
        ({"recipe": {**SMALL, "optim": {"opt": "sgd"}}}, "optim.opt is adamw there"),
    ],
)
def test_another_contest_is_refused_and_the_difference_named(tmp_path, changes, words):
    contest(tmp_path / "out")
    before = {path: path.read_bytes() for path in tmp_path.glob("out/*.*")}
    with pytest.raises(UserError, match=words) as caught:
        contest(tmp_path / "out", **changes)
    assert "--out" in str(caught.value)
    assert before == {path: path.read_bytes() for path in tmp_path.glob("out/*.*")}


def test_how_it_is_called_may_differ(tmp_path):
    contest(tmp_path / "out")
    do = FakeWork()
    contest(tmp_path / "out", do=do, recipe={**SMALL, "num_workers": 1, "checkpoint_minutes": 3.0})
    assert do.asked == []


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("Dear")
    with pytest.raises(UserError, match="holds no comparison"):
        contest(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"letter.txt", ".lock"}


def test_minutes_become_updates_by_a_pace_that_is_measured_once(tmp_path):
    budget = Budget(amount=2, unit="minutes")
    do = FakeWork(stop_at=5)
    with pytest.raises(ContestStopped):
        contest(tmp_path / "out", NAMES[::2], do, budget=budget)
    assert [task for task, _ in do.asked] == [PACE, TRAIN, PACE, TRAIN, TRAIN]
    again = FakeWork()
    results = contest(tmp_path / "out", NAMES[::2], again, budget=budget)
    assert [task for task, _ in again.asked] == [TRAIN, TRAIN, TAKE_TURNS]
    assert [each.updates for each in again.configs] == [120, 240]
    assert [run.updates for run in results.of(NAMES[2]).runs] == [240, 240]
    assert "cvt_nano_32 120, cvt_nano_32+kv_stride=1 240" in " ".join(results.notes)


def test_a_short_run_warms_up_shortly_unless_told_how_long(tmp_path):
    do = FakeWork()
    contest(tmp_path / "a", NAMES[:1], do)
    assert do.configs[0].optim["warmup_epochs"] == pytest.approx(0.2)
    own = {**SMALL, "optim": {"warmup_epochs": 1.5}}
    contest(tmp_path / "b", NAMES[:1], do, recipe=own)
    assert do.configs[-1].optim["warmup_epochs"] == 1.5


def test_run_folders_go_where_they_are_not_wanted(tmp_path):
    do = FakeWork(broken={"cvt_mini_32": "No."})
    results = contest(tmp_path / "out", ("cvt_nano_32", "cvt_mini_32"), do, keep_runs=False)
    left = {config.model for config in do.configs if Path(config.out).exists()}
    assert left == {"cvt_mini_32"}  # to go on with
    do = FakeWork()
    again = contest(tmp_path / "out", ("cvt_nano_32", "cvt_mini_32"), do, keep_runs=False)
    assert again.of("cvt_nano_32") == results.of("cvt_nano_32")
    assert len(do.configs) == 2


def test_changes_to_the_recipe_are_told_and_named(tmp_path):
    odd = Contender(label="sgd", model="cvt_nano_32", changes={"optim": {"base_lr": 1.0}})
    do = FakeWork()
    results = contest(tmp_path / "out", ("cvt_nano_32", odd), do, seeds=1)
    assert [each.optim.get("lr") for each in do.configs] == [pytest.approx(1e-3), None]
    assert do.configs[1].optim["base_lr"] == 1.0
    assert "sgd does not follow the common recipe alone" in " ".join(results.notes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": ("cvt_nan_32",)}, "cvt_nano_32"),
        ({"names": ("cvt_nano_32+kv_strid=1",)}, "kv_stride"),
        ({"names": ("cvt_13",), "recipe": {**SMALL, "image_size": 2}}, "too small"),
        ({"names": (Contender(label="a", model="cvt_nano_32", changes={"optm": 1}),)}, "optim"),
        ({"recipe": {**SMALL, "weights": "demo"}}, "from scratch"),
        ({"recipe": {**SMALL, "data": "torch/cifar11"}}, "torch/cifar10"),
        ({"budget": Budget(amount=31, unit="images")}, "less than one update"),
        ({"seeds": 0}, "seeds 0"),
        ({"names": ()}, "no model"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(tmp_path, changes, words):
    do = FakeWork()
    with pytest.raises(UserError, match=words):
        contest(tmp_path / "out", **{"do": do, **changes})
    assert do.asked == []
    assert not (tmp_path / "out").exists()


def test_a_run_that_a_lost_comparison_still_holds_is_waited_for(tmp_path, monkeypatch):
    held = [True, True, False]
    monkeypatch.setattr("cvt.bench.contest.contest.is_held", lambda run: held.pop(0))
    results = contest(tmp_path / "out", NAMES[:1], seeds=1)
    assert held == []
    assert not results.has_failures


def test_two_at_once_are_refused(tmp_path):
    code = (
        "import sys, fcntl\nfile = open(sys.argv[1], 'ab')\nfcntl.lockf(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\nsys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match="another process"):
            contest(tmp_path)
        other.stdin.close()


def test_each_run_has_its_line(tmp_path, capsys):
    do = FakeWork(broken={"cvt_mini_32": "No memory."})
    contest(tmp_path / "out", ("cvt_nano_32", "cvt_mini_32"), do, progress=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("[1/4] cvt_nano_32, seed 0: test top-1 ")
    assert lines[0].endswith("400 images/s, 303 MB, 6 s of updates")
    assert lines[1] == "[2/4] cvt_mini_32, seed 0: failed: No memory."
    contest(tmp_path / "out", ("cvt_nano_32", "cvt_mini_32"), progress=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Going on with {tmp_path / 'out'}: 2 runs are left."
    assert lines[1].startswith("[3/4] cvt_mini_32, seed 0: test top-1 ")
