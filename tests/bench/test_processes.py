"""Processes of their own, with tasks that import nothing heavy."""

import os
import signal
import subprocess
import sys
import time

import pytest

from cvt.bench.processes import Failed, Stopped, work

WORKER = """
import os, signal, sys, time
from cvt.bench import worker
from cvt.errors import UserError

def mistake(plain):
    raise UserError("Got this,\\n expected that.")

def crash(plain):
    print("a warning", file=sys.stderr)
    raise RuntimeError("broken " + plain["what"])

def sleep(plain):
    open(plain["mark"], "w").close()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        open(plain["mark"] + ".saved", "w").close()
        raise

worker.TASKS.clear()
worker.TASKS.update(
    echo=lambda plain: {"said": plain, "process": os.getpid()},
    mistake=mistake,
    crash=crash,
    exit=lambda plain: sys.exit(plain["code"]),
    kill=lambda plain: os.kill(os.getpid(), plain["signal"]),
    sleep=sleep,
    long=lambda plain: sys.exit("x" * 5000),
)
if __name__ == "__main__":
    sys.exit(worker.main(sys.argv[1:]))
"""


@pytest.fixture
def do(tmp_path, monkeypatch):
    """`do("task", {...})`: the work of a process."""
    (tmp_path / "tiny_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def call(task, plain, must_stop=lambda: False):
        return work(task, plain, must_stop, "tiny_worker")

    return call


def test_the_answer_comes_from_another_process(do):
    plain = {"a": [1, 2.5, None, True], "off": "off", "number": "1e-3"}
    answer = do("echo", plain)
    assert answer["said"] == plain
    assert answer["process"] != os.getpid()


@pytest.mark.parametrize(
    ("task", "plain", "words"),
    [
        ("mistake", {}, "^Got this, expected that.$"),
        ("crash", {"what": "thing"}, "^RuntimeError: broken thing$"),
        ("exit", {"code": 7}, "ended with code 7 and said nothing"),
        ("exit", {"code": 130}, "interrupted from outside"),
        ("kill", {"signal": 9}, r"signal 9 \(SIGKILL\), as systems do when memory runs out"),
        ("kill", {"signal": 11}, r"signal 11 \(SIGSEGV\)\.$"),
        ("long", {}, "x…$"),
    ],
)
def test_what_goes_wrong_is_a_sentence(do, task, plain, words):
    with pytest.raises(Failed, match=words) as caught:
        do(task, plain)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) <= 400


def test_asked_to_stop_it_saves_first(do, tmp_path):
    mark = tmp_path / "mark"
    with pytest.raises(Stopped):
        do("sleep", {"mark": str(mark)}, mark.exists)
    assert (tmp_path / "mark.saved").exists()


def test_a_background_job_of_a_shell_can_stop_it_too(do, tmp_path):
    """Such a job ignores SIGINT, and so would every process that it starts."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        mark = tmp_path / "mark"
        with pytest.raises(Stopped):
            do("sleep", {"mark": str(mark)}, mark.exists)
    finally:
        signal.signal(signal.SIGINT, before)


def test_it_ends_when_whoever_started_it_is_gone(do, tmp_path):
    """Killed, one cannot say anything any more: the system closes what one held."""
    mark = tmp_path / "mark"
    code = (
        "import os, sys\nfrom cvt.bench.processes import work\nmark = sys.argv[1]\n"
        "die = lambda: os.path.exists(mark) and os.kill(os.getpid(), 9)\n"
        "work('sleep', {'mark': mark}, die, 'tiny_worker')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(mark)], check=False)
    assert done.returncode == -signal.SIGKILL
    until = time.monotonic() + 30
    while not (tmp_path / "mark.saved").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
