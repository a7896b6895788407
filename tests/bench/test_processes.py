"""Processes of their own, with tasks that import nothing heavy."""

import os
import signal
import subprocess
import sys
import time

import pytest

from cvt.bench.processes import Failed, Stopped, work

WORKER = """
import os, sys, time
from cvt.errors import UserError

def path_of_a_child():
    import json, subprocess
    code = "import json, sys; print(json.dumps(sys.path))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return json.loads(done.stdout)

def mistake(plain):
    raise UserError("Got this,", details=["  expected that."])

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

def echo(plain):
    return {"said": plain, "process": os.getpid()}

def leave(plain):
    sys.exit(plain["code"])

def kill(plain):
    os.kill(os.getpid(), plain["signal"])

def long(plain):
    sys.exit("x" * 5000)

def path(plain):
    return {"path": sys.path, "of_a_child": path_of_a_child()}
"""


@pytest.fixture
def do(tmp_path, monkeypatch):
    """`do("task", {...})`: the work of a process."""
    (tmp_path / "tiny_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    def call(task, plain, must_stop=lambda: False):
        return work(f"tiny_worker:{task}", plain, must_stop)

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
        ("leave", {"code": 7}, "ended with code 7 and said nothing"),
        ("leave", {"code": 130}, "interrupted from outside"),
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


def test_it_imports_nothing_from_the_current_folder(do, tmp_path, monkeypatch):
    """Nor does what it starts in turn: a file beside images may be a stranger's."""
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path / "images")
    for name in ("timm", "torch", "numpy", "yaml", "json", "cvt", "tiny_worker", "sitecustomize"):
        (tmp_path / "images" / f"{name}.py").write_text("raise SystemExit('a stranger ran')")
    found = do("path", {})
    here = str(tmp_path / "images")
    assert not {"", ".", here} & set(found["path"] + found["of_a_child"])


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
        "work('tiny_worker:sleep', {'mark': mark}, die)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(mark)], check=False)
    assert done.returncode == -signal.SIGKILL
    until = time.monotonic() + 30
    while not (tmp_path / "mark.saved").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
