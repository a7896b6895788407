"""`cvt VERB ...`: finds the verb, and turns what went wrong into one sentence and an exit code.

Exit codes: 0 all well; 1 some inputs were bad and skipped (under torchrun that is 0); 2 the user's
mistake; 130 interrupted.
"""

import errno
import inspect
import os
import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pkgutil import resolve_name
from typing import Any, NamedTuple

from cyclopts import App, CycloptsError, UnknownOptionError

from cvt import __version__
from cvt.cli.flags import explain_unknown
from cvt.errors import Remark, UserError, shown
from cvt.files import OutputLost, needed, quiet


class Verb(NamedTuple):
    """Where a verb's function is, as `FILE:FUNCTION` of this room, and what help says of it.

    Args:
        examples: Command lines that work when pasted, once there are photographs to name.
    """

    where: str | Callable[..., int | None]
    line: str
    examples: tuple[str, ...] = ()


VERBS: Mapping[str, Verb] = {
    "models": Verb(
        "show:models",
        "List the models and the published weights.",
        ("cvt models", "cvt models '*_nano_32' --json"),
    ),
    "show": Verb(
        "show:show",
        "Show a model's stages: grids, tokens, parameters, MACs.",
        ("cvt show cvt_13 --image-size 224x160", "cvt show demo"),
    ),
    "train": Verb(
        "train:train",
        "Train a classifier; without arguments, on handwritten digits.",
        ("cvt train", "cvt train photos/ --out runs/photos"),
    ),
    "compare": Verb(
        "contest:compare",
        "Train models side by side, or print what they count.",
        (
            "cvt compare cvt_13 deit_small_patch16_224 pvt_small",
            "cvt compare cvt_nano_32 vit_nano_32 --data digits --budget 5epochs",
        ),
    ),
    "ablate": Verb(
        "contest:ablate",
        "Make the paper's tables again: by counting, or by training.",
        ("cvt ablate 7", "cvt ablate 7 8 --data digits --budget 5epochs --seeds 2"),
    ),
    "bench": Verb(
        "bench:bench",
        "Measure speed and memory of models side by side.",
        (
            "cvt bench cvt_13 --form eager,deploy",
            "cvt bench demo timm/resnet18 --image-size 32 --batch-size 1,16",
        ),
    ),
    "runs": Verb(
        "runs:runs",
        "List the runs in a folder and compare them.",
        ("cvt runs", "cvt runs runs/photos --plot curves.png"),
    ),
    "eval": Verb(
        "evaluate:evaluate",
        "Measure a checkpoint on labelled images.",
        ("cvt eval runs/photos photos/", "cvt eval runs/photos held_out/ --split all --json"),
    ),
    "probe": Verb(
        "evaluate:probe",
        "Measure a checkpoint's frozen features: k-NN and linear.",
        ("cvt probe demo digits", "cvt probe runs/photos photos/ --method knn -k 5"),
    ),
    "predict": Verb(
        "predict:predict",
        "Say what images show.",
        ("cvt predict photo.jpg", "cvt predict runs/photos 'held_out/*/*.jpg' -k 1 --json"),
    ),
    "convert": Verb(
        "convert:convert",
        "Write a checkpoint in another library's layout.",
        (
            "cvt convert runs/photos photos.safetensors",
            "cvt convert runs/photos for_timm --to timm",
        ),
    ),
    "export": Verb(
        "export:export",
        "Write a network for ONNX, OpenVINO and other runtimes.",
        ("cvt export runs/photos photos.onnx", "cvt export demo demo.pt2 --dynamic none"),
    ),
}

_FIRST = ("cvt train", "cvt predict photo.jpg")

_LIMITS = {
    errno.EMFILE: "this process may not open more files; allow more (ulimit -n 4096), or use fewer "
    "--num-workers",
    errno.ENFILE: "the system has too many files open; close some programs",
    errno.ENOMEM: "memory has run out; use smaller batches or fewer --num-workers",
    errno.EAGAIN: "no more processes or threads are allowed (ulimit -u); use fewer --num-workers",
    errno.ENOSPC: "a disk is full, perhaps that of temporary files (TMPDIR); free some space first",
}


def make_app(called: str | None = None, verbs: Mapping[str, Verb] = VERBS) -> App:
    """Returns the command line; of its verbs only the one that is called is imported.

    That one's help is its own docstring; the others are a line of a list.
    """
    verb = verbs.get(called or "")
    app = App(
        name="cvt",
        help="CvT: convolutions in vision transformers, from a photograph to a label.",
        version=__version__,
        help_epilogue=_examples(verb.examples if verb else _FIRST),
        help_format="plaintext",
        suppress_keyboard_interrupt=False,
    )
    for name, (where, line, _) in verbs.items():
        if name == called:
            function = resolve_name(f"cvt.cli.{where}") if isinstance(where, str) else where
            app.command(function, name=name, help=_docstring(function))
        else:
            app.command(f"cvt.cli.{where}", name=name, help=line)
    return app


def _examples(commands: Sequence[str]) -> str:
    return "\n  ".join(("Examples:", *commands))


def _docstring(function: Callable[..., int | None]) -> str:
    """A verb's own words, as wide as the terminal."""
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    width = shutil.get_terminal_size().columns
    return "\n\n".join(textwrap.fill(each, width) for each in paragraphs)


def main(arguments: Sequence[str] | None = None, verbs: Mapping[str, Verb] = VERBS) -> int:
    """Runs one verb and returns the exit code.

    What is said on stderr never stops anything. Output that cannot be written ends a verb, since
    nobody would have it: quietly where its reader has gone, as `head` does, otherwise with 2.
    """
    # Whatever is started from here imports nothing from the current folder either.
    os.environ["PYTHONSAFEPATH"] = "1"
    _open_streams()
    with (
        redirect_stdout(needed(sys.stdout)),
        redirect_stderr(quiet(sys.stderr)),
        warnings.catch_warnings(),
    ):
        warnings.showwarning = _remarks_as_sentences(warnings.showwarning)
        code = _run(list(sys.argv[1:] if arguments is None else arguments), verbs)
        try:
            sys.stdout.flush()
        except OutputLost as lost:
            code = code or _no_output(lost.error)
    # To torchrun any other code is a process that was lost: it would start all of them again.
    return 0 if code == 1 and "TORCHELASTIC_RUN_ID" in os.environ else code


def _run(arguments: list[str], verbs: Mapping[str, Verb]) -> int:
    called = next((each for each in arguments if not each.startswith("-")), None)
    try:
        code = make_app(called, verbs)(
            _with_stdin(arguments),
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
        return code or 0
    except UnknownOptionError as error:
        return _complain(shown(explain_unknown(error)), 2)
    except (CycloptsError, UserError) as error:
        if getattr(error, "is_told_elsewhere", False):
            return 2
        return _complain(" ".join(shown(line) for line in str(error).splitlines()), 2)
    except KeyboardInterrupt as stopped:
        return _complain(str(stopped) or "Interrupted.", 130)
    except OutputLost as lost:
        return _no_output(lost.error)
    except (OSError, ImportError, RuntimeError) as error:
        return _complain(_exhausted(error), 2)


def _with_stdin(arguments: list[str]) -> list[str]:
    """Spells the `-` of `cvt predict -` as a path, since any other dash in front is an option's."""
    if arguments[:1] != ["predict"]:
        return arguments
    return ["/dev/stdin" if each == "-" else each for each in arguments]


def _open_streams() -> None:
    """Sees to it that there are streams: without (`>&-`), files would get their numbers."""
    if sys.stdout is None or sys.stderr is None:
        while (handle := os.open(os.devnull, os.O_RDWR)) < 2:
            pass
        if handle > 2:
            os.close(handle)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _no_output(error: OSError) -> int:
    if isinstance(error, BrokenPipeError):  # whoever read it has had enough
        return 0
    return _complain(f"Cannot write the output: {error.strerror or error}.", 2)


def _exhausted(error: Exception) -> str:
    """Returns a sentence about a limit of the system that was met; raises an error that is none."""
    text = str(error)
    number = error.errno if isinstance(error, OSError) else None
    for code, advice in _LIMITS.items():
        if number == code or os.strerror(code) in text:
            return f"{os.strerror(code)}: {advice}."
    raise error


def _remarks_as_sentences(usual: Any) -> Any:
    def show(message: Any, category: Any, *where: Any, **more: Any) -> None:
        if issubclass(category, Remark):
            print(f"cvt: {message}", file=sys.stderr)
        else:
            usual(message, category, *where, **more)

    return show


def _complain(sentence: str, code: int) -> int:
    print(f"cvt: {sentence}", file=sys.stderr)
    return code
