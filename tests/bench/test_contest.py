"""Comparisons: their budgets, what is alike for all, what is written down, and going on."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contests import SMALL, FakeWork, accuracy, contest, lines, trained
from cvt.bench.contest import Budget, ContestConfig, ContestStopped, make_plan, read_budget, runs
from cvt.bench.contest.contest import COMPARISON, TAKE_TURNS
from cvt.bench.contest.runs import PACE, TRAIN, seconds_per_update
from cvt.bench.folder import ResultsFolder
from cvt.bench.names import Contender, read_contender
from cvt.bench.speed.measure import take_turns
from cvt.errors import UserError
from cvt.runtime import ALONE
from cvt.training.run_folder import Pace
from cvt.training.setup import prepare
from cvt.zoo.describe import describe

COUNTED = cache(describe)


@pytest.fixture(autouse=True)
def counted_once(monkeypatch):
    """Counting a network takes half a second, and these tests have the same three all over."""
    monkeypatch.setattr("cvt.bench.contest.plan.describe", COUNTED)


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


def test_the_best_stands_first_in_the_table_and_an_image_is_drawn(tmp_path):
    drawn = []
    contest(tmp_path / "out", NAMES, seeds=2, draw=lambda path, results: drawn.append(path))
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
    assert all(len(each.scores) == 2 for each in results.contenders)
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


HOLD = """
import sys, fcntl, time
file = open(sys.argv[1], 'ab')
fcntl.lockf(file, fcntl.LOCK_EX)
print('held', flush=True)
time.sleep(float(sys.argv[2]))
"""


def test_a_run_that_a_lost_comparison_still_holds_is_waited_for(tmp_path):
    with pytest.raises(SystemExit):
        contest(tmp_path, NAMES[:1], FakeWork(kill_at=1), seeds=1)
    run = tmp_path / "runs" / "cvt_nano_32-seed0"
    run.mkdir(parents=True)
    command = [sys.executable, "-c", HOLD, str(run / ".lock"), "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        do = FakeWork()

        def work(task, plain, must_stop):
            assert other.wait(0.5) == 0
            return do(task, plain, must_stop)

        assert not contest(tmp_path, NAMES[:1], work, seeds=1).has_failures
    assert len(do.configs) == 1


def test_two_at_once_are_refused(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / ".lock"), "99"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match="another process"):
            contest(tmp_path)
        other.kill()


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


# --- Budgets.


@pytest.mark.parametrize(
    ("text", "amount", "unit", "said"),
    [
        ("3epochs", 3, "epochs", "3 epochs"),
        ("3 epochs", 3, "epochs", "3 epochs"),
        ("1epoch", 1, "epochs", "1 epoch"),
        ("0.5 epochs", 0.5, "epochs", "0.5 epochs"),
        ("20000images", 20_000, "images", "20,000 images"),
        ("20,000 images", 20_000, "images", "20,000 images"),
        ("100k images", 100_000, "images", "100,000 images"),
        ("1.5m images", 1_500_000, "images", "1,500,000 images"),
        ("10minutes", 10, "minutes", "10 minutes"),
        ("10min", 10, "minutes", "10 minutes"),
        ("90 s", 1.5, "minutes", "1.5 minutes"),
        ("2H", 120, "minutes", "120 minutes"),
    ],
)
def test_reads_a_budget(text, amount, unit, said):
    budget = read_budget(text)
    assert budget == Budget(amount=amount, unit=unit)
    assert str(budget) == said
    assert read_budget(budget.short) == budget


@pytest.mark.parametrize("text", ["", "3", "epochs", "three epochs", "-1epochs", "3 days", "3 km"])
def test_what_is_no_budget(text):
    with pytest.raises(UserError, match="expected epochs, images or minutes"):
        read_budget(text)


@pytest.mark.parametrize("text", ["0epochs", "0.0 minutes", "0k images"])
def test_nothing_is_no_budget(text):
    with pytest.raises(UserError, match="more than zero"):
        read_budget(text)


@given(st.integers(1, 1000), st.integers(1, 10_000), st.integers(1, 512))
def test_epochs_are_whole_epochs_and_images_no_more_than_asked(amount, per_epoch, batch_size):
    epochs = Budget(amount=amount, unit="epochs").updates(per_epoch, batch_size)
    assert epochs == amount * per_epoch
    images = Budget(amount=amount * batch_size + batch_size - 1, unit="images")
    assert images.updates(per_epoch, batch_size) == amount


def test_minutes_depend_on_the_pace():
    budget = Budget(amount=2, unit="minutes")
    assert budget.updates(10, 64) is None
    assert budget.updates_at(0.5) == 240
    assert Budget(amount=0.1, unit="minutes").updates_at(0.1) == 60


def test_less_than_an_update_is_refused():
    with pytest.raises(UserError, match="less than one update with 64 images"):
        Budget(amount=63, unit="images").updates(10, 64)
    with pytest.raises(UserError, match="when one takes 61 s"):
        Budget(amount=1, unit="minutes").updates_at(61)


# --- What is alike for all when it comes to the images, and how speeds are measured.

TINY = read_contender("cvt_nano_32+depth=1")


def plan_of(*contenders, **recipe):
    """Two seeds of two epochs at 16 pixels."""
    asked = {**SMALL, "image_size": 16, "batch_size": 16, "num_workers": 0, **recipe}
    budget = Budget(amount=2, unit="epochs")
    return make_plan(contenders, ContestConfig(recipe=asked, budget=budget, seeds=2, out=Path("x")))


def batches(plan, name, seed, folder):
    config = plan.run_config(read_contender(name), seed, folder / f"{name}-{seed}", 100)
    job = prepare(config, ALONE)
    job.progress.epoch = 1
    return [batch for batch, _ in zip(job.train_loader(), range(3), strict=False)]


def test_a_seed_is_the_same_images_in_the_same_order_varied_alike(tmp_path):
    names = ("cvt_nano_32+depth=1", "vit_nano_32+depth=1")
    plan = plan_of(*map(read_contender, names))
    one, other = (batches(plan, name, 0, tmp_path) for name in names)
    assert len(one) == 3
    for mine, yours in zip(one, other, strict=True):
        assert torch.equal(mine.images, yours.images)
        assert torch.equal(mine.labels, yours.labels)
    another = batches(plan, names[0], 1, tmp_path)
    assert not torch.equal(one[0].labels, another[0].labels)


def test_who_comes_first_decides_nothing():
    both = [read_contender(name) for name in ("cvt_mini_32", "vit_nano_32+depth=1")]
    assert plan_of(*both).to_dict() == plan_of(*both[::-1]).to_dict()


def test_the_model_of_a_recipe_does_not_matter():
    recipe = {"model": "cvt_mini_32", "model_args": {"kv_stride": 1}, "epochs": 7, "seed": 3}
    assert plan_of(TINY, **recipe).to_dict() == plan_of(TINY).to_dict()


def test_the_pace_holds_the_beginnings_of_epochs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(runs, "measure_pace", lambda *_: Pace(update=2.0, epoch=39.0))
    plan = plan_of(TINY)
    config = plan.run_config(TINY, 0, tmp_path / "unused", None)
    assert seconds_per_update(config) == 2.0 + 39.0 / plan.updates_per_epoch
    assert list(tmp_path.iterdir()) == []


def test_inference_is_timed_in_turns_and_what_has_no_room_left_out():
    turns = []

    def clock(call, device, seconds):
        (images,) = call.args
        turns.append(call().shape[1])
        if turns[-1] == 3:
            raise torch.OutOfMemoryError
        assert images.shape == (8, 3, 16, 16)
        return ({2: [0.8, 0.2, 0.4], 4: [8.0]}[turns[-1]] * 7)[turns.count(turns[-1]) - 1], 1

    models = {
        label: {"model": "cvt_nano_32", "model_args": {"num_classes": classes, "depth": 1}}
        for label, classes in (("a", 2), ("big", 3), ("b", 4))
    }
    asked = {"models": models, "image_size": 16, "batch_size": 8, "device": "cpu",
             "precision": "float32"}  # fmt: skip
    assert take_turns(asked, clock) == {"a": 20.0, "b": 1.0}
    assert turns == [2, 3, 4] + [2, 4] * 6
