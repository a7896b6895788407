"""Killed with -9 at moments that nobody chose, and resumed: the same bits as never stopped."""

import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import pytest

from cvt.cli import main
from cvt.plain import to_plain, write_yaml
from processes import in_processes, started
from trained import differences

EVERY_UPDATE = 1e-6  # minutes
PATIENCE = 100.0  # seconds


def call(arguments: list[str]) -> tuple[int, str]:
    """Runs the command line in a process of its own: the exit code, and what it complained of."""
    out, err = io.StringIO(), io.StringIO()
    with patch("matplotlib.figure.Figure.savefig"), redirect_stdout(out), redirect_stderr(err):
        return main(arguments), err.getvalue()


def nothing() -> None:
    """Is done quickly."""


@dataclass
class Kills:
    """What became of the sessions of a run."""

    count: int = 0
    of_one: int = 0
    while_saving: int = 0
    sessions: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.count} kills in {len(self.sessions)} sessions: {self.while_saving} while a "
            f"checkpoint was written, {self.of_one} of one process of two"
        )


class Victim:
    """A run that is killed and resumed until it is through.

    Args:
        yaml: Its config.
        run: Its folder, which it is started into again if it was killed before it began.
        processes: How many train together.
    """

    def __init__(self, yaml: Path, run: Path, processes: int, chance: random.Random) -> None:
        self.yaml, self.run, self.processes, self.chance = yaml, run, processes, chance
        self.kills = Kills()

    def lives(self, within: float, while_saving: bool) -> bool:
        """Starts a session and kills it at some moment; whether it ended before that."""
        resumed = (self.run / "config.yaml").exists()
        begin = ["--resume", str(self.run)] if resumed else ["-c", str(self.yaml)]
        arguments = ["train", *begin, *self._workers()]
        left_behind = _half_written(self.run)
        with started(self.processes, call, arguments, timeout=PATIENCE) as processes:
            self._wait(processes, within, while_saving)
            kills_one = (self.run / ".lock").exists() and self.chance.random() < 0.5
            victims = [self.chance.choice(processes.pids)] if kills_one else processes.pids
            for pid in victims:
                _kill(pid)
            results = processes.results()
        assert None not in processes.codes, "a process hung"
        dead = processes.codes.count(-signal.SIGKILL)
        self.kills.sessions.append(f"{begin[0]} {processes.codes} {results}")
        if dead:
            self.kills.count += 1
            self.kills.of_one += dead < self.processes
            self.kills.while_saving += bool(_half_written(self.run) - left_behind)
        for result in results:
            assert result is None or result[0] == 0 or _is_lost_touch(*result), result
        return dead == 0 and all(result == (0, "") for result in results)

    def through(self) -> None:
        """Lets it come to its end."""
        begun = (self.run / "config.yaml").exists()
        begin = ["--resume", str(self.run)] if begun else ["-c", str(self.yaml)]
        with started(self.processes, call, ["train", *begin], timeout=PATIENCE) as processes:
            assert processes.results() == [(0, "")] * self.processes

    def _wait(self, processes, within: float, while_saving: bool) -> None:
        """Until a random moment, or a random moment while a checkpoint is being written."""
        left_behind = _half_written(self.run)
        moment = time.monotonic() + self.chance.uniform(0, within)
        end = time.monotonic() + PATIENCE / 2
        while time.monotonic() < (end if while_saving else moment):
            if while_saving and time.monotonic() > moment and _half_written(self.run) - left_behind:
                time.sleep(self.chance.uniform(0, 0.1))
                return
            if not any(_is_alive(pid) for pid in processes.pids):
                return
            time.sleep(0.002)

    def _workers(self) -> list[str]:
        return self.chance.choice([[], [], ["--num-workers", "1"]])


def _half_written(run: Path) -> set[tuple[int, int]]:
    """The checkpoints that are not complete, told apart by what their file system knows."""
    found = set()
    for each in run.glob("checkpoints/.*.tmp"):
        with suppress(FileNotFoundError):
            found.add((each.stat().st_ino, each.stat().st_ctime_ns))
    return found


def _is_lost_touch(code: int, complaint: str) -> bool:
    return code == 2 and re.fullmatch(
        r"cvt: Process \d of 2 lost touch with another one, .*--resume\.\n", complaint
    )


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def reference(config: dict, folder: Path, processes: int) -> tuple[Path, float]:
    """The run that nobody kills, and how long it takes."""
    folder.mkdir()
    run = folder / "whole"
    in_processes(1, nothing)  # starts the server, which takes longer than the run
    (folder / "whole.yaml").write_text(write_yaml(to_plain({**config, "out": str(run)})))
    start = time.monotonic()
    Victim(folder / "whole.yaml", run, processes, random.Random(0)).through()
    return run, time.monotonic() - start


@pytest.mark.parametrize(("processes", "while_saving"), [(1, False), (2, True)])
def test_killed_and_resumed(processes, while_saving, tiny_run, tmp_path):
    """At a random moment, or at one while a checkpoint is written; SGD stores the least."""
    optim = {"opt": "sgd", "lr": 0.05, "warmup_epochs": 0.5}
    config = tiny_run("", epochs=1, optim=optim, checkpoint_minutes=EVERY_UPDATE)
    whole, seconds = reference(config, tmp_path / "reference", processes)
    run = tmp_path / "run"
    (tmp_path / "run.yaml").write_text(write_yaml(to_plain({**config, "out": str(run)})))
    victim = Victim(tmp_path / "run.yaml", run, processes, random.Random())
    victim.lives(within=seconds, while_saving=while_saving)
    victim.through()
    assert differences(whole, run) == [], victim.kills.sessions


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_twenty_random_moments(processes, tiny_run, tmp_path, capsys):
    """Every run that comes to its end is compared; one kill in three waits for a checkpoint."""
    config = tiny_run("", epochs=4, ema_decay=0.9, checkpoint_minutes=EVERY_UPDATE)
    whole, seconds = reference(config, tmp_path / "reference", processes)
    chance, start = random.Random(), time.monotonic()
    state = chance.getrandbits(32)
    chance.seed(state)
    total, runs = Kills(), 0
    while total.count < 20:
        run = tmp_path / f"run {runs}"
        (tmp_path / "run.yaml").write_text(write_yaml(to_plain({**config, "out": str(run)})))
        victim = Victim(tmp_path / "run.yaml", run, processes, chance)
        victim.kills = total
        while total.count < 20:
            if victim.lives(within=seconds, while_saving=chance.random() < 1 / 3):
                break
        victim.through()
        assert differences(whole, run) == [], (state, total.sessions)
        shutil.rmtree(run)
        runs += 1
    with capsys.disabled():
        print(
            f"\n{processes} processes, seed {state}: {total}; {runs} runs bit-equal to the one "
            f"never killed, {time.monotonic() - start:.0f} s"
        )


TORCHRUN = [
    *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
    *("--nproc-per-node", "2", "--max-restarts", "1", "-m", "cvt", "train"),
]


@pytest.mark.slow
def test_torchrun_starts_a_lost_process_again_and_the_run_goes_on(tiny_run, tmp_path):
    """Nobody resumes: the processes that torchrun started anew find the checkpoint themselves."""
    config = tiny_run("", epochs=4, ema_decay=0.9, checkpoint_minutes=EVERY_UPDATE)
    whole, _ = reference(config, tmp_path / "reference", 2)
    run = tmp_path / "run"
    (tmp_path / "run.yaml").write_text(write_yaml(to_plain({**config, "out": str(run)})))
    with _torchrun(["-c", str(tmp_path / "run.yaml")], tmp_path) as agent:
        _wait_for(lambda: any(run.glob("checkpoints/00000[3-9]")), agent)
        os.kill(_children(agent.pid)[1], signal.SIGKILL)
        assert agent.wait(300) == 0, (tmp_path / "said").read_text()
    assert differences(whole, run) == []
    said = (tmp_path / "said").read_text()
    assert "Traceback" not in said.replace("Traceback : Signal 9", "")


@pytest.mark.slow
def test_ctrl_c_at_torchrun_saves_and_says_how_to_go_on(tiny_run, tmp_path):
    config = tiny_run("", epochs=400, checkpoint_minutes=60.0)
    run = tmp_path / "run"
    (tmp_path / "run.yaml").write_text(write_yaml(to_plain({**config, "out": str(run)})))
    with _torchrun(["-c", str(tmp_path / "run.yaml")], tmp_path) as agent:
        _wait_for(lambda: (run / "metrics.csv").exists(), agent)
        os.killpg(agent.pid, signal.SIGINT)  # as a terminal sends it
        agent.wait(120)
    said = (tmp_path / "said").read_text()
    assert said.count("Go on with: cvt train --resume") == 1, said
    newest = sorted(run.glob("checkpoints/0*"))[-1]
    progress = json.loads((newest / "state.json").read_text())["facts"]["progress"]
    assert f"in epoch {progress['epoch'] + 1} of 400" in said


def _torchrun(arguments: list[str], folder: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(folder / "said", "wb") as said:
        return subprocess.Popen(
            [*TORCHRUN, *arguments],
            stdout=said,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def _wait_for(seen, agent: subprocess.Popen) -> None:
    end = time.monotonic() + 300
    while not seen():
        assert agent.poll() is None, "it ended before"
        assert time.monotonic() < end, "it hung"
        time.sleep(0.01)


def _children(pid: int) -> list[int]:
    out = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True
    )
    return [int(each) for each in out.stdout.split()]
