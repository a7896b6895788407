"""Work in processes of its own, started, watched and stopped from here."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cvt.errors import UserError
from cvt.plain import read_yaml, write_yaml

# --- A process of its own for each piece of work: `python -P -m cvt.bench.processes TASK INPUT
# OUTPUT`.
#
# Peak memory is then that of one run, and a crash takes nothing else along. The process ends
# itself, saving its state, when its standard input closes: so also when whoever started it was
# killed.

STOPPED = 130


def main(arguments: Sequence[str]) -> int:
    """Does a task; returns 0, 2 with a sentence on stderr, or 130 if it was asked to stop."""
    task, source, target = arguments
    # A shell's background jobs are started deaf to it, and what they start as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_watch, args=(sys.stdin.fileno(),), daemon=True).start()
    try:
        answer = TASKS[task](read_yaml(Path(source).read_text(encoding="utf-8")))
    except UserError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return STOPPED
    Path(target).write_text(json.dumps(answer), encoding="utf-8")
    return 0


def _watch(handle: int) -> None:
    """Waits until nobody holds the other end, and then does what Ctrl-C does."""
    while os.read(handle, 1):
        pass
    os.kill(os.getpid(), signal.SIGINT)


def _train(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Trains, or goes on with a run that was begun; the run's folder says the rest."""
    from cvt.runtime import Interrupted
    from cvt.training.config import TrainConfig
    from cvt.training.loop import train
    from cvt.training.run_folder import CONFIG_FILE

    config = TrainConfig.from_dict(plain)
    run = Path(str(config.out))
    if (run / CONFIG_FILE).exists():
        config = TrainConfig(
            resume=str(run),
            device=config.device,
            num_workers=config.num_workers,
            data_dir=config.data_dir,
        )
    try:
        train(config, progress=False)
    except Interrupted:
        raise KeyboardInterrupt from None
    return {}


def _pace(plain: Mapping[str, Any]) -> dict[str, Any]:
    from cvt.bench.contest.recipe import seconds_per_update
    from cvt.training.config import TrainConfig

    return {"seconds_per_update": seconds_per_update(TrainConfig.from_dict(plain))}


def _speed(plain: Mapping[str, Any]) -> dict[str, Any]:
    from cvt.bench.speed.clock import images_per_s

    return images_per_s(**plain)


def _bench_facts(plain: Mapping[str, Any]) -> dict[str, Any]:
    from cvt.bench.speed.facts import find_facts

    return find_facts(**plain)


def _bench(plain: Mapping[str, Any]) -> dict[str, Any]:
    from cvt.bench.speed.measure import die_first, measure

    die_first()
    return measure(**plain)


TASKS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "train": _train,
    "pace": _pace,
    "speed": _speed,
    "bench_facts": _bench_facts,
    "bench": _bench,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))


_LOOK_EVERY_S = 0.2
_LONGEST = 400

Watch = Callable[[], bool]


class Stopped(Exception):
    """Work ended because it was asked to; it has saved what it could."""


class Failed(UserError):
    """Work went wrong; the message is a sentence about it."""


def work(
    task: str, plain: Mapping[str, Any], must_stop: Watch, module: str = "cvt.bench.processes"
) -> dict[str, Any]:
    """Does one of `cvt.bench.processes.TASKS` in a new process, and returns what it answered.

    Args:
        plain: What the task is given.
        must_stop: Called several times a second; once it says so, the process is asked to save its
            state and end.
        module: Whose `main` does it.

    Raises:
        Failed: It could not do it, it crashed, or the system ended it.
        Stopped: It was asked to stop before it was done.
    """
    with tempfile.TemporaryDirectory(prefix="cvt-") as folder:
        source, target, said = (Path(folder) / name for name in ("in.yaml", "out.json", "said"))
        source.write_text(write_yaml(dict(plain)), encoding="utf-8")
        # -P, and the variable for what it starts in turn: or a timm.py that lies in the current
        # folder, perhaps beside a stranger's pictures, would be imported.
        command = [sys.executable, "-P", "-m", module, task, str(source), str(target)]
        with open(said, "wb") as errors:
            # A session of its own: Ctrl-C comes to us alone, and we pass it on, once.
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={**os.environ, "PYTHONSAFEPATH": "1"},
                start_new_session=True,
            )
        try:
            asked = _wait(process, must_stop)
        finally:
            process.kill()  # of a process that has ended, this does nothing
            process.communicate()
        if process.returncode == 0:
            return json.loads(target.read_text(encoding="utf-8"))
        if asked:
            raise Stopped
        raise Failed(_sentence(process.returncode, said.read_text(errors="replace")))


def _wait(process: "subprocess.Popen[bytes]", must_stop: Watch) -> bool:
    """Waits for the end; returns whether the process was asked for it."""
    asked = False
    while True:
        try:
            process.wait(_LOOK_EVERY_S)
            return asked
        except subprocess.TimeoutExpired:
            if must_stop() and not asked:
                asked = True
                assert process.stdin is not None
                process.stdin.close()


def _sentence(code: int, said: str) -> str:
    """Returns what went wrong: the process's own sentence, or a traceback's last line."""
    if code == STOPPED:
        return "It was interrupted from outside."
    if code < 0:
        name = signal.Signals(-code).name
        reason = ", as systems do when memory runs out" if -code == signal.SIGKILL else ""
        return f"Its process was ended by signal {-code} ({name}){reason}."
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if not lines:
        return f"Its process ended with code {code} and said nothing."
    return lines[-1] if len(lines[-1]) <= _LONGEST else f"{lines[-1][: _LONGEST - 1]}…"
