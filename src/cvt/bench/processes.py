"""Work in processes of its own, started, watched and stopped from here."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cvt.bench.worker import STOPPED
from cvt.errors import UserError
from cvt.plain import write_yaml

_LOOK_EVERY_S = 0.2
_LONGEST = 400

Watch = Callable[[], bool]


class Stopped(Exception):
    """Work ended because it was asked to; it has saved what it could."""


class Failed(UserError):
    """Work went wrong; the message is a sentence about it."""


def work(
    task: str, plain: Mapping[str, Any], must_stop: Watch, module: str = "cvt.bench.worker"
) -> dict[str, Any]:
    """Does one of `cvt.bench.worker.TASKS` in a new process, and returns what it answered.

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
