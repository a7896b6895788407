import errno
import io
import subprocess
import sys
import warnings
from contextlib import suppress
from importlib import import_module

import pytest

from cvt.cli.main import VERBS, Verb, main
from cvt.errors import Remark
from streams import lost_stream

HEAVY = {"torch", "timm", "torchvision", "sklearn", "matplotlib", "numpy", "pyarrow"}


def test_help_lists_the_verbs(run):
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert all(verb in out and each.line in out for verb, each in VERBS.items())
    assert out.endswith("\n\nExamples:\n  cvt train\n  cvt predict photo.jpg\n")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(run, verb):
    code, out, err = run(verb, "--help")
    assert (code, err) == (0, "")
    module, _, function = VERBS[verb].where.partition(":")
    docstring = getattr(import_module(f"cvt.cli.{module}"), function).__doc__
    usage, *said = (" ".join(each.split()) for each in out.split("\n\n"))
    assert usage.startswith(f"Usage: cvt {verb} ")
    paragraphs = [" ".join(each.split()) for each in docstring.split("\n\n")]
    assert said[: len(paragraphs)] == paragraphs
    assert paragraphs[0] == VERBS[verb].line
    assert out.endswith("".join(f"\n  {each}" for each in VERBS[verb].examples) + "\n")
    assert max(map(len, out.splitlines())) <= 80
    for line in out.splitlines():
        assert line == line.rstrip()


@pytest.mark.parametrize("verb", ["ablate", "compare", "models", "predict", "runs"])
def test_where_json_is_lines_the_help_says_so(run, verb):
    assert "an object a line" in " ".join(run(verb, "--help")[1].replace("│", " ").split())


def test_the_help_of_convert_calls_things_by_one_name(run):
    out = run("convert", "--help")[1]
    assert "what TARGET's name says" in out
    assert "OUT'" not in out


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom cvt.cli import main\nmain(['--help'])\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"


def test_as_a_module_it_imports_nothing_from_the_current_folder(tmp_path):
    """As torchrun starts it, beside images that came with more than images."""
    for name in (
        "timm",
        "torch",
        "numpy",
        "yaml",
        "json",
        "cyclopts",
        "rich",
        "PIL",
        "safetensors",
    ):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stranger ran')")
    for command in (["-m", "cvt", "show", "cvt_nano_32"], ["-P", "-m", "cvt", "--help"]):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "cvt" in done.stdout


def test_what_it_starts_imports_nothing_from_the_current_folder(run, monkeypatch):
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    run("--help")
    code = "import sys; sys.exit('' in sys.path)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("flag", ["--patience", "--zzz", "--siez-of-anything"])
def test_no_flag_is_named_that_is_not_near(run, flag):
    code, _, err = run("show", "cvt_13", flag, "3")
    assert (code, err) == (2, f"cvt: Unknown option: {flag}.\n")


def test_version(run):
    import cvt

    assert run("--version")[1].strip() == cvt.__version__


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("trian",), ("trian", "train")),
        (("show", "cvt_14"), ("cvt_14", "cvt_13")),
        (("show", "cvt_13", "--image-siez", "3"), ("--image-siez", "--image-size")),
        (("train", "--epoch", "3"), ("--epoch", "--epochs")),
        (("train", "--early_stopping"), ("--patience",)),
        (("compare", "cvt_13", "--minutes", "3"), ("--budget", "10minutes")),
        (("train", "--lrr", "3"), ("mean --lr?",)),
        (("ablate", "5", "--weight-dekay", "3"), ("mean --weight-decay?",)),
        (("compare", "cvt_13", "--epochs", "3"), ("--epochs", "--budget")),
        (("train", "--optim.lrr", "3"), ("mean --optim.lr?",)),
        (("show", "cvt_13", "--image-size", "big"), ("big", "224x160")),
        (("show", "cvt_13", "--image-size", "2"), ("too small", "3 pixels")),
        (("models", "regnet*"), ("regnet*",)),
        (("train", "--epochs", "four"), ("--epochs", "four")),
        (("predict", "nowhere.safetensors", "a.jpg"), ("nowhere.safetensors",)),
        (("convert", "nowhere.pth", "out.safetensors"), ("nowhere.pth",)),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(run, arguments, words):
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("cvt: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert all(word in err for word in words)


def test_a_reader_that_stops_early_is_no_error():
    command = f"{sys.executable} -c 'from cvt.cli import main; import sys; sys.exit(main())'"
    # Nobody is there any more when, seconds later, the first line comes.
    pipe = f"{command} models 'cvt_*_32' --json | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""


def test_ctrl_c_is_one_word_and_130(run):
    def pressed() -> None:
        raise KeyboardInterrupt

    assert run(pressed) == (130, "", "cvt: Interrupted.\n")


@pytest.fixture
def output(monkeypatch):
    """`output("full")`, `output("closed")`: standard output as a full disk, or without a reader."""

    def make(kind: str, name: str = "stdout") -> None:
        stream = lost_stream(kind)
        monkeypatch.setattr(sys, name, stream)
        streams.append(stream)

    streams: list = []
    yield make
    for each in streams:
        with suppress(OSError):
            each.close()


@pytest.mark.parametrize("count", [1, 100_000])
@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize(
    ("kind", "code", "words"),
    [
        ("full", 2, "cvt: Cannot write the output: No space left on device.\n"),
        ("closed", 0, ""),
    ],
)
def test_output_that_is_lost_ends_a_verb(run, output, kind, code, words, flush, count):
    output(kind)
    assert run(lambda: print("x" * count, flush=flush)) == (code, "", words)


def test_what_is_said_aside_never_ends_anything(run, output):
    for kind in ("full", "closed"):
        output(kind, "stderr")
        assert run(lambda: print("aside", file=sys.stderr)) == (0, "", "")
        assert run("nothing")[0] == 2


def test_a_verb_without_any_streams_works(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert main(["--version"]) == 0
    assert main(["nothing"]) == 2
    sys.stdout.close()
    sys.stderr.close()


def test_letters_that_the_output_lacks_are_escaped(monkeypatch):
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding="ascii"))
    assert main(["verb"], {"verb": Verb(lambda: print("caf\xe9 \udcff"), "")}) == 0
    assert content.getvalue() == b"caf\\xe9 \\udcff\n"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        ImportError("libtorch.so: cannot open shared object file: Too many open files"),
        RuntimeError("Caught OSError in worker process 0: [Errno 24] Too many open files"),
        OSError(errno.EAGAIN, "Resource temporarily unavailable"),
    ],
)
def test_limits_of_the_system_are_a_sentence(run, error):
    def limited() -> None:
        raise error

    code, _, err = run(limited)
    assert code == 2
    assert "ulimit" in err
    assert err.count("\n") == 1


def test_a_mistake_of_ours_is_still_a_traceback(run):
    def broken() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run(broken)


def test_remarks_are_sentences(run):
    def remarkable() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.warn("Mind the gap.", Remark, stacklevel=1)

    assert run(remarkable) == (0, "", "cvt: Mind the gap.\n")
