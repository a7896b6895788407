"""A run in minutes: its pace, its plan, plans made anew, and the end in time; patience."""

import copy
import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from cvt.data import load_data
from cvt.errors import UserError
from cvt.evaluation.answers import Logits
from cvt.plain import from_plain, to_plain
from cvt.training import loop, pace
from cvt.training.config import TrainConfig
from cvt.training.loop import train
from cvt.training.pace import Limits, Watch, has_stopped_moving, measure_pace
from cvt.training.report import read_result, report
from cvt.training.run_folder import EpochRow, Pace, Piece, Timetable, read_metrics
from cvt.weights.record import Preprocessing
from cvt.zoo.create import create_model
from processes import in_processes
from stored import stored_facts
from trained import TINY_MODEL, Event, config_of, differences, farthest, session

# --- Plans: which update is where in the schedule.


def plan_of(end: int, *changes: tuple[int, int], every: int = 1) -> Timetable:
    plan = Timetable(pieces=(Piece(start=0, done=0.0, end=end),), validate_every=every)
    for update, new_end in changes:
        plan = plan.changed(update, new_end)
    return plan


def test_a_plan_that_is_kept_is_the_schedule_itself():
    plan = plan_of(977)
    assert [plan.position(each) for each in range(978)] == list(range(978))


@pytest.mark.parametrize("changes", [[(30, 60)], [(30, 200)], [(30, 60), (41, 90), (80, 81)]])
def test_a_changed_plan_goes_on_from_where_it_was_and_ends_at_the_end(changes):
    plan = plan_of(100, *changes)
    total = changes[-1][1]
    assert plan.total == total
    assert plan.position(total) == pytest.approx(100)
    places = [plan.position(each) for each in range(total + 1)]
    assert places[:31] == list(range(31))
    steps = np.diff(places)
    assert (steps > 0).all()
    for (update, end), (before, after) in zip(
        changes, [(steps[update - 1], steps[update]) for update, _ in changes], strict=True
    ):
        left = 100 - places[update]
        assert after == pytest.approx(left / (end - update))
        assert before != after


def test_a_plan_may_end_on_the_spot():
    plan = plan_of(100, (40, 40))
    assert (plan.total, plan.position(39)) == (40, 39)


def test_a_plan_is_stored_and_what_is_none_refused():
    plan = plan_of(100, (30, 60), every=3)
    plain = to_plain(plan)
    assert from_plain(Timetable, plain, "it") == plan
    first, second = plain["pieces"]
    for pieces in ([], [second], [first, first], [{**first, "end": 0}], [second, first]):
        with pytest.raises(UserError, match="pieces of a plan that do not go together"):
            from_plain(Timetable, {"pieces": pieces}, "it")


# --- From a pace to a plan.

SLOW = Pace(update=1.0, epoch=0.25, validation=2.0, test=3.0)


def spent_in_full(used: Pace, plan: Timetable, each: int, done: int) -> float:
    """Goes through a run from an update on, and adds up what it takes."""
    seconds = 0.0
    for update in range(done, plan.total):
        if update % each == 0:
            if update > done or done == 0:
                seconds += used.validation * (
                    update > 0 and plan.is_validated(update // each, each)
                )
            seconds += used.epoch
        seconds += used.update
    if done and done % each == 0:  # a look comes before the validation of the epoch
        seconds += used.validation * (done < plan.total and plan.is_validated(done // each, each))
    return seconds + used.validation + used.test + pace._ENDING_S


@pytest.mark.parametrize("every", [1, 2, 3])
def test_what_a_plan_needs_is_what_a_run_of_it_takes(every):
    limits = Limits(seconds=100.0, updates_per_epoch=4, most_updates=None)
    for done in (0, 1, 4, 7, 8):
        for total in range(max(done, 1), 40):
            plan = plan_of(total, every=every)
            needed = limits.needed(SLOW, every, done, total)
            assert needed == pytest.approx(spent_in_full(SLOW, plan, 4, done)), (done, total)


def test_a_plan_takes_the_time_there_is_and_validates_for_a_seventh_of_it_at_most():
    for used in (SLOW, replace(SLOW, validation=0.01), replace(SLOW, validation=50.0)):
        limits = Limits(seconds=1000.0, updates_per_epoch=4, most_updates=None)
        plan = limits.plan(used, spent=20.0)
        left = 1000.0 - 20.0
        assert limits.needed(used, plan.validate_every, 0, plan.total) <= left
        assert limits.needed(used, plan.validate_every, 0, plan.total + 1) > left
        validated = [e for e in range(1, -(-plan.total // 4) + 1) if plan.is_validated(e, 4)]
        share = used.validation * (len(validated) - 1) / (left - used.validation)
        assert share <= pace.MOST_VALIDATING
    assert plan_of(30, every=1).is_validated(8, 4)  # the last one, which is cut short
    assert not plan_of(29, every=1).is_validated(7, 4)  # just before the end


def test_the_most_epochs_that_a_recipe_names_hold_too():
    limits = Limits(seconds=1000.0, updates_per_epoch=4, most_updates=40)
    assert limits.plan(SLOW, spent=0.0).total == 40
    assert limits.plan(replace(SLOW, update=100.0), spent=0.0).total < 10


def test_too_few_minutes_are_told_with_what_fits():
    limits = Limits(seconds=6.0, updates_per_epoch=4, most_updates=None)
    with pytest.raises(UserError) as raised:
        limits.plan(SLOW, spent=3.0)
    assert str(raised.value) == (
        "Got minutes 0.1, too few for an update (1 s), a validation (2 s) and what comes before "
        "and after them (8 s); 0.3 are the least here, 0.3 one epoch."
    )
    for minutes in (0.3,):
        enough = replace(limits, seconds=60 * minutes)
        assert enough.plan(SLOW, spent=3.0).total >= 1


# --- On the way: whether the end moves.


def watched(update: float, seconds: float = 1000.0, most: int | None = None) -> tuple:
    """A watch after 160 of the updates that were planned, all of them of this length."""
    limits = Limits(seconds=seconds, updates_per_epoch=100, most_updates=most)
    used = Pace(update=1.0, validation=2.0)
    plan = limits.plan(used, spent=0.0)
    watch = Watch(limits, plan, used)
    for _ in range(161):
        watch.update(update)
    return limits, plan, watch


@pytest.mark.parametrize("update", [0.5, 0.9, 1.2, 3.0])
def test_a_slower_or_quicker_machine_gets_another_plan(update):
    limits, plan, watch = watched(update)
    changed = watch.replan(plan, 160, spent=160 * update)
    assert changed is not None
    assert (changed.total < plan.total) == (update > 1)
    left = 1000 - 160 * update
    after = Pace(update=update, validation=2.0 * update)
    assert limits.needed(after, 1, 160, changed.total) <= left + 1e-6
    assert limits.needed(after, 1, 160, changed.total + 1) >= left - 1e-6
    assert changed.position(160) == pytest.approx(plan.position(160))


@pytest.mark.parametrize("update", [0.97, 1.0, 1.03])
def test_what_hardly_matters_changes_no_plan(update):
    _, plan, watch = watched(update)
    assert watch.replan(plan, 160, spent=160 * update) is None


def test_nobody_gets_more_epochs_than_the_recipe_names():
    _, plan, watch = watched(0.5, most=900)
    assert plan.total == 900
    assert watch.replan(plan, 160, spent=80.0) is None


def test_looks_are_few():
    _, plan, watch = watched(1.0)
    assert 35 <= sum(watch.is_due(done) for done in range(1, plan.total)) <= 45


def test_a_validation_that_was_timed_counts_for_half():
    watch = Watch(*watched(1.0)[:2], Pace(update=1.0, validation=2.0, test=4.0))
    watch.validation(3.0)
    assert (watch.pace.validation, watch.pace.test) == (2.5, 5.0)


# --- The look before a run.


class Ticking:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def after(self, work: Callable, seconds: Callable[[int], float]) -> Callable:
        """Returns the same work, which takes so long at its n-th call, counted from 0."""
        calls = []

        def timed(*args, **kwargs):
            made = work(*args, **kwargs)
            self.now += seconds(len(calls))
            calls.append(1)
            return made

        return timed


@pytest.fixture
def looked_at(tiny_folder):
    """`looked_at(**options)`: what a look at a tiny network says; `.model` is the network."""
    splits = load_data(str(tiny_folder))
    model = create_model("cvt_nano_32", num_classes=2, **TINY_MODEL)
    preprocessing = Preprocessing(input_size=(3, 16, 16), crop_pct=1.0)

    def look(changes: dict[str, Any] | None = None, **options) -> Pace | None:
        small = {"image_size": 16, "batch_size": 4, "num_workers": 0, "precision": "float32"}
        config = config_of(**small | (changes or {}))
        cpu = torch.device("cpu")
        return measure_pace(config, model, preprocessing, splits, cpu, **options)

    look.model = model
    return look


def test_a_look_leaves_no_trace(looked_at):
    model = looked_at.model
    model.eval()
    before = copy.deepcopy(model.state_dict())
    generators = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    used = looked_at({"ema_decay": 0.9, "mix": {"mixup": 0.8}}, most_s=lambda update: 1e-9)
    assert used.update > 0
    assert used.validation > 0.1
    assert used.test > 0
    assert random.getstate() == generators[0]
    assert (np.random.get_state()[1] == generators[1]).all()
    assert torch.equal(torch.get_rng_state(), generators[2])
    assert not model.training
    for name, each in model.state_dict().items():
        assert torch.equal(each, before[name]), name
    assert all(each.grad is None for each in model.parameters())


def test_a_look_is_the_mean_over_the_counted_updates(looked_at, monkeypatch):
    clock, made = Ticking(), []
    monkeypatch.setattr(pace.time, "monotonic", clock)

    def update(network, chunks, *rest):
        made.append(sum(len(labels) for _, labels in chunks))
        clock.now += 100.0 if len(made) <= pace.WARM_UP else 2.0

    monkeypatch.setattr(pace, "train_step", update)
    assert looked_at().update == 2.0
    assert made == [4] * (pace.WARM_UP + int(pace.LONGEST_S / 2.0))
    made.clear()
    looked_at({"accum_steps": 2})
    assert made == [4] * len(made)
    made.clear()
    assert looked_at(most_s=lambda update: 150.0).update == 100.0
    assert len(made) == 2
    made.clear()
    assert looked_at(most_s=lambda update: 0.0) is None
    assert len(made) == 1


# --- Runs with a clock of their own.

STEP = "cvt.training.loop.train_step"


def timed_session(
    config: dict[str, Any], *events: Event, begun: int = 0, used: Pace | None = None
) -> Any:
    """A session by a clock of its own, on a machine that is half as quick in updates 8 to 23.

    Args:
        begun: Updates made before.
        used: What the look before the run says, which is true in all other updates.
    """
    used = used or Pace(update=1.0, validation=2.0, test=2.0)
    clock, made = Ticking(), [begun]

    def seconds(number: int) -> float:
        return 2.0 if 8 <= number < 24 else 1.0

    def of_update(number: int) -> float:
        made[0] = begun + number + 1
        return seconds(begun + number)

    def of_answers(number: int) -> float:
        lately = range(max(made[0] - 8, 0), made[0])
        return used.validation * sum(map(seconds, lately)) / len(lately)

    patches = {
        "cvt.training.setup.measure_pace": lambda *args, **options: used,
        "cvt.training.loop.validate": clock.after(loop.validate, of_answers),
        "cvt.training.pace._LOOKS": 9,
        "cvt.training.pace._WINDOW": 1,
        STEP: clock.after(loop.train_step, of_update),
    }
    ended = session({**config, "clock": clock}, *events, patches=patches)
    return replace(ended, text=ended.text or str(clock.now))


SGD = {"opt": "sgd", "lr": 0.05, "warmup_epochs": 0.5}  # which stores the least


@pytest.fixture(scope="module")
def in_minutes(tiny_run):
    """`in_minutes(out)`: a run of a minute and a half."""
    return lambda out, **more: tiny_run(
        out, **{"epochs": None, "minutes": 1.5, "optim": SGD} | more
    )


@pytest.fixture(scope="module")
def whole(in_minutes, tmp_path_factory):
    """The run that nobody stops: its folder, and its clock at the end."""
    out = tmp_path_factory.mktemp("whole") / "run"
    ended = timed_session(in_minutes(out))
    assert ended.error == ""
    return out, float(ended.text)


def test_the_plan_is_changed_both_ways_and_the_run_ends_in_time(whole):
    run, seconds = whole
    plan = from_plain(Timetable, stored_facts(run)["progress"]["plan"], "it")
    (_, slow, quick) = plan.pieces
    assert (slow.start, quick.start) == (16, 32)
    assert slow.end < plan.length
    assert slow.end < quick.end
    assert 90 - pace._ENDING_S - 1 <= seconds <= 90 - pace._ENDING_S


def test_the_rate_is_at_its_floor_then_and_the_last_epoch_is_validated(whole):
    history = read_metrics(whole[0])
    plan = from_plain(Timetable, stored_facts(whole[0])["progress"]["plan"], "it")
    assert history[-1].epoch == -(-plan.total // 3)
    assert history[-1].lr < 1.3 * SGD["lr"] / 100
    assert max(row.lr for row in history) > 0.9 * SGD["lr"]
    assert 1 < len(history) < history[-1].epoch / 2, "validation would have taken too long"


def test_what_it_ended_by_is_said(whole):
    result = read_result(whole[0])
    assert result.ended == "minutes"
    assert "when its minutes were up" in report(result)
    assert [row.ended for row in read_metrics(whole[0])][-2:] == ["", "minutes"]


@pytest.mark.parametrize(("killed_at", "left_at"), [(20, 16), (34, 32)])
def test_killed_after_a_plan_was_changed_it_is_the_same_run(
    killed_at, left_at, whole, in_minutes, tmp_path
):
    """What was changed last is what a checkpoint was written for; nothing was saved since."""
    killed = in_processes(
        1, timed_session, in_minutes(tmp_path / "run"),
        Event(STEP, killed_at + 1, signal.SIGKILL), dies=[0],
    )  # fmt: skip
    assert killed == [None]
    progress = stored_facts(tmp_path / "run")["progress"]
    assert len(progress["plan"]["pieces"]) == (2 if killed_at == 20 else 3)
    assert progress["epoch"] * 3 + progress["batch"] == left_at
    assert progress["spent"] > 0
    assert timed_session({"resume": str(tmp_path / "run")}, begun=left_at).error == ""
    assert differences(whole[0], tmp_path / "run") == []


def test_stopped_before_the_first_change_it_is_the_same_run(whole, in_minutes, tmp_path):
    ended = timed_session(in_minutes(tmp_path / "run"), Event(STEP, 3))
    assert ended.error == "Interrupted"
    assert stored_facts(tmp_path / "run")["progress"]["spent"] == 3.0
    assert timed_session({"resume": str(tmp_path / "run")}, begun=3).error == ""
    assert differences(whole[0], tmp_path / "run") == []


def test_a_pace_that_is_kept_makes_the_run_of_so_many_updates(in_minutes, tiny_run, tmp_path):
    used = Pace(update=1.0, validation=0.0)
    minutes = (9 + pace._ENDING_S) / 60
    optim = {**SGD, "warmup_epochs": 0.0}
    config = in_minutes(tmp_path / "minutes", minutes=minutes, optim=optim)
    assert timed_session(config, begun=24, used=used).error == ""
    same = tiny_run(tmp_path / "updates", epochs=None, updates=9, optim=optim)
    assert session(same).error == ""
    assert farthest(tmp_path / "minutes", tmp_path / "updates") == 0
    assert read_result(tmp_path / "updates").ended == "updates"


def of_two_clocks(config: dict[str, Any]) -> Any:
    """A session whose clock goes twice as fast in the second process."""
    begun = 24 if os.environ["RANK"] == "0" else 8
    return timed_session(config, begun=begun)


def test_all_processes_follow_the_main_ones_clock(in_minutes, tmp_path):
    config = in_minutes(tmp_path / "run", minutes=0.5)
    main, other = in_processes(2, of_two_clocks, config)
    assert (main.error, other.error) == ("", "")
    assert replace(main.result, seconds=0.0) == replace(other.result, seconds=0.0)
    assert float(main.text) <= 30 < float(other.text)
    assert len(stored_facts(tmp_path / "run")["progress"]["plan"]["pieces"]) == 1


# --- What is said, and how.


def test_how_long_it_takes_is_said_before(tiny_config, capsys, monkeypatch):
    looks = []

    def look(config, *args, most_s, **options):
        looks.append([most_s(each) for each in (0.01, 10.0)])
        return Pace(update=10.0, epoch=1.0, validation=29.0, test=5.0)

    monkeypatch.setattr("cvt.training.setup.measure_pace", look)
    monkeypatch.setattr("cvt.training.loop.train_step", stopped)
    with pytest.raises(UserError, match="stopped"):
        train(**tiny_config(epochs=20))
    assert "It will take about 20 min here: 60 s an epoch." in capsys.readouterr().out
    assert looks == [[0.0, pytest.approx(9.0)]]


def stopped(*_: Any) -> Any:
    raise UserError("stopped")


def test_a_run_of_few_updates_is_not_looked_at(tiny_config, monkeypatch):
    monkeypatch.setattr("cvt.training.setup.measure_pace", stopped)
    monkeypatch.setattr("cvt.training.loop.train_step", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(**tiny_config(epochs=2))


def test_minutes_are_said_before_with_how_often_it_is_validated(in_minutes, tmp_path, capsys):
    used = Pace(update=1.0, validation=2.0, test=2.0)
    with (
        patch("cvt.training.setup.measure_pace", lambda *args, **options: used),
        patch("cvt.training.loop.train_step", stopped),
        pytest.raises(UserError, match="stopped"),
    ):
        train(**in_minutes(tmp_path / "run"), clock=Ticking())
    assert (
        "It will end after 1.5 min: 24.7 epochs here, 3.5 s an epoch, validated every 4 epochs, as "
        "that takes 2 s."
    ) in capsys.readouterr().out


def test_too_few_minutes_leave_nothing_behind(in_minutes, tmp_path):
    ended = timed_session(in_minutes(tmp_path / "run", minutes=0.05))
    assert ended.error == "UserError"
    assert ended.text.startswith("Got minutes 0.05, too few for an update (1 s), ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("other", [{"epochs": 3}, {"updates": 30}])
def test_minutes_beside_another_length_are_one_sentence(other, tiny_config, tmp_path):
    (name, value), both = next(iter(other.items())), {"epochs": None, "minutes": 3, **other}
    sentence = rf"^Got minutes 3 and {name} {value}, of which each is .*; give one of them\.$"
    with pytest.raises(UserError, match=sentence):
        train(**tiny_config(**both))
    (tmp_path / "both.yaml").write_text(f"minutes: 3\n{name}: {value}\n")
    with pytest.raises(UserError, match=sentence):
        train(recipe=tmp_path / "both.yaml")


def test_a_run_without_minutes_gets_none_later(tiny_config, tmp_path):
    assert session(tiny_config(epochs=1)).error == ""
    ended = session({"resume": str(tmp_path / "run"), "minutes": 1.0, "force": True})
    assert ended.text == (
        "Got minutes 1.0 for a run that was begun without any; start a new run from its weights."
    )


def test_a_config_needs_a_length():
    with pytest.raises(UserError, match="There is no 'epochs' in the config, and no 'minutes'"):
        replace(config_of(), epochs=None)
    assert TrainConfig.from_dict(replace(config_of(), epochs=None, minutes=3.0).to_dict()).minutes


# --- Patience.


def without_progress(*_: Any) -> Logits:
    """Answers that are always the same."""
    return Logits(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1, 1]))


SAME_ANSWERS = {"cvt.training.loop.validate": without_progress}


def test_patience_ends_a_run_and_is_exact_when_it_goes_on(tiny_run, tmp_path):
    config = tiny_run(tmp_path / "whole", epochs=9, patience=2, optim=SGD)
    whole = session(config, patches=SAME_ANSWERS)
    assert (whole.result.best_epoch, whole.result.ended) == (1, "patience")
    assert [row.epoch for row in read_metrics(tmp_path / "whole")] == [1, 2, 3]
    assert read_metrics(tmp_path / "whole")[-1].ended == "patience"
    cut = {**config, "out": str(tmp_path / "cut")}
    killed = Event(STEP, 8, UserError("killed"))  # which saves nothing
    assert session(cut, killed, patches=SAME_ANSWERS).text == "killed"
    for _ in range(2):  # the second time there is nothing left
        assert session({"resume": cut["out"]}, patches=SAME_ANSWERS).result.ended == "patience"
        assert differences(tmp_path / "whole", tmp_path / "cut") == []


def test_patience_changes_no_rate(tiny_run, tmp_path):
    for patience in (None, 1):
        config = tiny_run(tmp_path / str(patience), patience=patience, epochs=3, optim=SGD)
        assert session(config, patches=SAME_ANSWERS).error == ""
    plain, early = (read_metrics(tmp_path / name) for name in ("None", "1"))
    assert len(early) == 2
    assert [row.lr for row in early] == [row.lr for row in plain[:2]]


def test_patience_goes_with_minutes(in_minutes, tmp_path):
    config = in_minutes(tmp_path / "run", patience=5)
    with patch("cvt.training.loop.validate", without_progress):
        ended = timed_session(config)
    assert ended.result.ended == "patience"
    assert read_metrics(tmp_path / "run")[0].epoch == ended.result.best_epoch


# --- Validation that does not move.


def rows(*top1s: float, loss: float = 1.0) -> list[EpochRow]:
    return [
        EpochRow(epoch=number, val_top1=top1, val_loss=loss, seconds=30.0)
        for number, top1 in enumerate(top1s, 1)
    ]


def first_told(history: list[EpochRow], epochs: int = 25, num_images: int = 400) -> list[int]:
    return [
        length
        for length in range(1, len(history) + 1)
        if has_stopped_moving(history[:length], epochs, num_images)
    ]


def test_validation_that_moves_no_more_is_told_once():
    assert first_told(rows(50, 60, 70, *[70] * 20)) == [8]
    assert first_told(rows(50, 60, 70, *[71] * 20)) == [8], "within its own uncertainty"
    assert first_told(rows(50, 60, 70, *[71] * 20), num_images=100_000) == [9]
    assert first_told(rows(50, 60, 70, *[70] * 20), epochs=60) == [15]


def test_validation_that_moves_is_not():
    assert first_told(rows(*range(50, 90, 2))) == []
    falling = [replace(row, val_loss=0.95**row.epoch) for row in rows(*[70] * 20)]
    assert first_told(falling) == []


def test_a_run_says_it_if_much_time_is_left(tiny_config, tmp_path, capsys):
    clock = Ticking()
    with (
        patch("cvt.training.loop.validate", without_progress),
        patch("cvt.training.loop.train_step", clock.after(loop.train_step, lambda _: 20.0)),
        patch("cvt.training.setup.measure_pace", lambda *args, **options: None),
        patch("matplotlib.figure.Figure.savefig"),
    ):
        train(**tiny_config(epochs=8, optim=SGD), clock=clock)
    said = [line for line in capsys.readouterr().out.splitlines() if "has not moved" in line]
    assert len(said) == 1
    assert "Ctrl-C stops here and best.safetensors keeps epoch 1; --patience N" in said[0]
