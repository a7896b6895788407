"""Work in processes of its own, started, watched and stopped from here.

A process for each piece of work, `python -P -m cvt.bench.processes MODULE:FUNCTION INPUT OUTPUT`:
peak memory is then that of this work alone, and a crash takes nothing else along. It ends itself,
saving its state, when its standard input closes: so also when whoever started it was killed.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from cvt.errors import UserError
from cvt.plain import read_yaml, write_yaml

# --- On this side: starting, watching, stopping.

_LOOK_EVERY_S = 0.2
_LONGEST = 400

Watch = Callable[[], bool]
Work = Callable[[str, Mapping[str, Any], Watch], Any]


class Stopped(Exception):
    """Work ended because it was asked to; it has saved what it could."""


class Failed(UserError):
    """Work went wrong; the message is a sentence about it."""


def work(task: str, plain: Mapping[str, Any], must_stop: Watch) -> Any:
    """Calls a function in a new process, and returns what it returned.

    Raises `Failed` if it could not do it, it crashed, or the system ended it, and `Stopped` if it
    was asked to stop before it was done.

    Args:
        task: `module:function`, which takes and returns plain data.
        plain: What it is given.
        must_stop: Called several times a second; once it says so, the process is asked to save its
            state and end.
    """
    with tempfile.TemporaryDirectory(prefix="cvt-") as folder:
        source, target, said = (Path(folder) / name for name in ("in.yaml", "out.json", "said"))
        source.write_text(write_yaml(dict(plain)), encoding="utf-8")
        # -P, and the variable for what it starts in turn: or a timm.py that lies in the current
        # folder, perhaps beside a stranger's images, would be imported.
        command = [sys.executable, "-P", "-m", __name__, task, str(source), str(target)]
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


# --- On the other side: the process that works.

STOPPED = 130


def main(arguments: Sequence[str]) -> int:
    """Does a task; returns 0, 2 with a sentence on stderr, or 130 if it was asked to stop."""
    task, source, target = arguments
    # A shell's background jobs are started deaf to it, and what they start as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_watch, args=(sys.stdin.fileno(),), daemon=True).start()
    try:
        answer = do_here(task, read_yaml(Path(source).read_text(encoding="utf-8")))
    except UserError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return STOPPED
    Path(target).write_text(json.dumps(answer), encoding="utf-8")
    return 0


def do_here(task: str, plain: Mapping[str, Any]) -> Any:
    """Calls a function in this process, and returns what it returned."""
    module, _, function = task.partition(":")
    return getattr(import_module(module), function)(plain)


def _watch(handle: int) -> None:
    """Waits until nobody holds the other end, and then does what Ctrl-C does."""
    while os.read(handle, 1):
        pass
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
