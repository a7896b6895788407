"""What a full disk, a crash or a stranger leaves of the checkpoints: a run goes on, or says why."""

import errno
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from functools import partial

import pytest

from cvt import train
from cvt.errors import Remark, UserError
from processes import in_processes
from streams import lost_stream
from trained import Event, differences, session

pytestmark = pytest.mark.usefixtures("undrawn")

STEP = "cvt.training.loop.train_step"
EVERY_UPDATE = 1e-6  # minutes


@pytest.fixture(scope="module")
def short_run(tiny_run):
    """`short_run(out, **changes)`: four updates of the usual six; SGD stores the least."""
    optim = {"opt": "sgd", "lr": 0.05, "warmup_epochs": 0.5}
    return partial(tiny_run, epochs=None, updates=4, accum_steps=2, optim=optim)


@pytest.fixture(scope="module")
def whole(short_run, tmp_path_factory):
    """The run without any trouble."""
    return session(short_run(tmp_path_factory.mktemp("whole"))).result.run


@pytest.fixture(scope="module")
def cut(short_run, tmp_path_factory):
    """The folder of a run that was stopped after two updates, with a checkpoint of each of them."""
    out = tmp_path_factory.mktemp("cut")
    config = short_run(out, checkpoint_minutes=EVERY_UPDATE, keep_checkpoints=2)
    assert session(config, Event(STEP, 2)).error == "Interrupted"
    assert [each.name for each in saved(out)] == ["000001", "000002"]
    return out


@pytest.fixture
def run(cut, tmp_path):
    """A copy of that folder."""
    return shutil.copytree(cut, tmp_path / "run")


def saved(run):
    return sorted((run / "checkpoints").iterdir())


def damage(checkpoint, how: str) -> None:
    data = next(checkpoint.glob("*.distcp"))
    facts = checkpoint / "state.json"
    if how == "data cut short":
        os.truncate(data, data.stat().st_size // 2)
    elif how == "a bit of the data":
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif how == "a digit of the facts":
        stated = json.loads(facts.read_text())
        stated["facts"]["progress"]["batch"] += 1
        facts.write_text(json.dumps(stated))
    elif how == "facts cut short":
        os.truncate(facts, facts.stat().st_size // 2)
    elif how == "no facts":
        facts.unlink()
    elif how == "other facts":
        facts.write_text("[]")
    else:
        data.unlink()


DAMAGES = [
    "data cut short",
    "a bit of the data",
    "a digit of the facts",
    "facts cut short",
    "no facts",
    "other facts",
    "no data",
]


def test_a_run_goes_on_from_the_one_before_and_says_so(run, whole, capsys):
    damage(saved(run)[-1], "a bit of the data")
    train(resume=str(run))
    shown = " ".join(capsys.readouterr().out.split())
    name = run / "checkpoints" / "000002"
    assert f"checkpoint {name} is half written or was changed; going on from 000001." in shown
    assert differences(whole, run) == []


@pytest.mark.parametrize("how", DAMAGES)
def test_with_all_of_them_damaged_a_sentence_says_so(how, run):
    for checkpoint in saved(run):
        damage(checkpoint, how)
    ended = session({"resume": str(run)})
    assert ended.error == "UserError"
    assert ended.text == (
        f"Cannot resume {run}: its checkpoints are damaged ({run}/checkpoints/000002 is half "
        "written or was changed); train again."
    )


@pytest.mark.parametrize("left", ["nothing", "a config", "half a checkpoint"])
def test_a_run_that_had_saved_nothing_yet_begins_again(left, short_run, whole, tmp_path):
    """Killed before its first checkpoint; before its config, the first command works again."""
    config = short_run(tmp_path / "run", checkpoint_minutes=10.0)
    functions = {
        "nothing": "cvt.training.loop.save_config",
        "a config": "cvt.training.loop.save_state",
        "half a checkpoint": "cvt.training.checkpoints._finish",
    }
    killed = Event(functions[left], 1, signal.SIGKILL)
    in_processes(1, session, config, killed, dies=(0,))
    assert not list((tmp_path / "run").glob("checkpoints/0*"))
    again = config if left == "nothing" else {"resume": str(tmp_path / "run")}
    ended = session(again)
    assert ended.result, ended.text
    assert differences(whole, tmp_path / "run") == []


@pytest.mark.parametrize(
    ("function", "call"),
    # Weights are written at the start, when they are the best, and behind every checkpoint.
    [("cvt.training.loop.save_checkpoint", 3), ("cvt.training.loop.write_metrics", 1)],
    ids=["before the last weights", "before the metrics"],
)
def test_what_a_killed_session_left_behind_its_state_is_made_up_for(
    function, call, sheets, short_run, tmp_path
):
    """Killed after the last checkpoint, when no update is left that would write the rest."""
    config = short_run(tmp_path / "whole", updates=2)
    assert session(config).result
    cut = {**config, "out": str(tmp_path / "cut")}
    killed = Event(function, call, signal.SIGKILL)
    in_processes(1, session, cut, killed, dies=(0,))
    assert session({"resume": cut["out"]}).result
    assert differences(tmp_path / "whole", tmp_path / "cut") == []
    assert {each.name for each in (tmp_path / "whole").iterdir()} == {
        each.name for each in (tmp_path / "cut").iterdir()
    }


def test_a_full_disk_is_one_sentence_and_costs_nothing_saved(run, whole):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    resumed = {"resume": str(run), "checkpoint_minutes": EVERY_UPDATE}
    # Each checkpoint is flushed to the disk several times; the weights before it, once.
    ended = session(resumed, Event("os.fsync", 4, full))
    assert ended.error == "UserError"
    assert ended.text.startswith("The disk is full: ")
    assert ended.text.endswith("was not written; free some space first.")
    assert [each.name for each in saved(run)][:2] == ["000001", "000002"]
    assert session({"resume": str(run)}).result
    assert differences(whole, run) == []
    assert not list(run.rglob("*.tmp"))


def test_a_checkpoint_too_large_for_the_file_system_keeps_the_others(run, whole):
    sizes = [each.stat().st_size for each in saved(run)[-1].iterdir()]
    main, other = in_processes(2, with_small_files, {"resume": str(run)}, max(sizes) // 2)
    assert main.text.startswith(f"Cannot write {run}/")
    assert "File too large" in main.text
    assert (main.is_told_elsewhere, other.is_told_elsewhere) == (False, True)


def with_small_files(config: dict, limit: int):
    """A session whose files may not grow beyond a limit."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return session(config)


def tell(run, **changes) -> None:
    """Puts other facts into all checkpoints, as whoever made the folder can, digests included."""
    for checkpoint in saved(run):
        file = checkpoint / "state.json"
        stated = json.loads(file.read_text())
        del stated["digest"]
        for name, change in changes.items():
            old = stated["facts"][name]
            stated["facts"][name] = {**old, **change} if isinstance(change, dict) else change
        digest = hashlib.sha256(json.dumps(stated).encode()).hexdigest()
        file.write_text(json.dumps({**stated, "digest": digest}))


@pytest.mark.parametrize(
    "changes",
    [
        {"config": None},
        {"config": {"epochs": "many"}},
        {"config": {"num_workers": 10**6}},
        {"config": {"data": ["a"]}},
        {"identity": []},
        {"identity": {"chunks": 0}},
        {"identity": {"data": {"training": "all"}}},
        {"record": {"model": None}},
        {"record": {"spec": {"stages": []}}},
        {"progress": {"epoch": -1}},
        {"progress": {"epoch": 1}},
        {"progress": {"history": {}}},
        {"progress": {"best": {"epoch": 1}}},
        {"progress": {"num_images": 10**400}},
        {"progress": {"bad": [1]}},
        {"has_moments": "yes"},
        {"scaler": "none"},
    ],
    ids=lambda changes: json.dumps(changes)[:40],
)
def test_facts_of_another_kind_are_a_sentence(run, changes):
    tell(run, **changes)
    ended = session({"resume": str(run)})
    assert ended.error == "UserError"
    assert len(ended.text) < 1000


def test_a_run_that_is_trained_is_left_alone_before_anything_is_read(run):
    for checkpoint in saved(run):
        (checkpoint / "state.json").unlink()
    ended = in_processes(1, resumed_while_held, str(run))[0]
    assert ended.error == "UserError"
    assert ended.text.startswith(f"The run {run} is being trained by another process")


def resumed_while_held(run: str):
    """A session of a run that a process of its own holds."""
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'ab'); fcntl.lockf(file, fcntl.LOCK_EX); "
        "print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, f"{run}/.lock"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        return session({"resume": run})


def test_a_strangers_run_writes_in_its_own_folder_only(run, whole, tmp_path):
    other = tmp_path / "other"
    tell(run, config={"out": str(other), "download": True, "resume": str(other), "force": True})
    ended = session({"resume": str(run)})
    assert ended.result, ended.text
    assert differences(whole, run) == []
    assert sorted(each.name for each in tmp_path.iterdir()) == ["run"]


def test_a_plot_that_cannot_be_drawn_costs_no_figures(run, whole, monkeypatch):
    def broken(*args, **kwargs):
        raise UserError("Cannot draw it.")

    monkeypatch.setattr("cvt.errors._remarked", set())
    monkeypatch.setattr("cvt.training.loop.save_curves", broken)
    with pytest.warns(Remark, match=r"There is no plot: Cannot draw it\."):
        train(resume=str(run), progress=False)
    assert (run / "result.json").exists()


@pytest.mark.parametrize("kind", ["full", "closed"])
def test_output_that_is_lost_ends_no_training(run, whole, kind, monkeypatch):
    with lost_stream(kind) as stream:
        monkeypatch.setattr("sys.stdout", stream)
        train(resume=str(run))
    assert differences(whole, run) == []
