import subprocess
import sys

import pytest

from cvt.cli.main import VERBS

HEAVY = {"torch", "timm", "torchvision", "sklearn", "matplotlib", "numpy", "pyarrow"}


def test_help_lists_the_verbs(run):
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    assert all(verb in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(run, verb):
    code, out, err = run(verb, "--help")
    assert (code, err) == (0, "")
    assert VERBS[verb][1].split()[0] in out


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom cvt.cli import main\nmain(['--help'])\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"


def test_as_a_module_it_imports_nothing_from_the_current_folder(tmp_path):
    """As torchrun starts it, beside pictures that came with more than pictures."""
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
    for options in ((), ("-P",)):
        done = subprocess.run(
            [sys.executable, *options, "-m", "cvt", "models", "--json"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "cvt_13" in done.stdout


def test_what_it_starts_imports_nothing_from_the_current_folder(run, monkeypatch):
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    run("--help")
    code = "import sys; sys.exit('' in sys.path)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_version(run):
    import cvt

    assert run("--version")[1].strip() == cvt.__version__


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("trian",), ("trian", "train")),
        (("show", "cvt_14"), ("cvt_14", "cvt_13")),
        (("show", "cvt_13", "--siez", "3"), ("--siez", "--size")),
        (("train", "--epoch", "3"), ("--epoch", "--epochs")),
        (("show", "cvt_13", "--size", "big"), ("big", "224x160")),
        (("show", "cvt_13", "--size", "2"), ("too small", "3 pixels")),
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
    pipe = f"{command} models --json | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == ""


def test_ctrl_c_is_one_word_and_130(run, monkeypatch):
    def pressed() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cvt.cli.models.models", pressed)
    assert run("models") == (130, "", "cvt: Interrupted.\n")
