"""`cvt VERB ...`: finds the verb, and turns what went wrong into one sentence and an exit code.

Exit codes: 0 all well; 1 some inputs were bad and skipped (under torchrun that is 0); 2 the user's
mistake; 130 interrupted.
"""

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, UnknownOptionError

from cvt import __version__
from cvt.cli.flags import explain_unknown
from cvt.errors import UserError, shown

VERBS = {
    "models": ("models:models", "List the models and the published weights."),
    "show": ("show:show", "Show a model's stages: grids, tokens, parameters, MACs."),
    "train": ("train:train", "Train a classifier; without arguments, on handwritten digits."),
    "compare": ("compare:compare", "Train models side by side, or print what they count."),
    "ablate": ("ablate:ablate", "Make the paper's tables again: by counting, or by training."),
    "bench": ("bench:bench", "Measure speed and memory of models side by side."),
    "runs": ("runs:runs", "List the runs in a folder and compare them."),
    "eval": ("evaluate:evaluate", "Measure a checkpoint on labelled images."),
    "probe": ("probe:probe", "Measure a checkpoint's frozen features: k-NN and linear."),
    "predict": ("predict:predict", "Say what images show."),
    "convert": ("convert:convert", "Write a checkpoint in another library's layout."),
    "export": ("export:export", "Write a network for ONNX, OpenVINO and other runtimes."),
}


def make_app() -> App:
    """Returns the command line; a verb's module is imported when the verb is called."""
    app = App(
        name="cvt",
        help="CvT: convolutions in vision transformers, from a photograph to a label.",
        version=__version__,
        help_epilogue="Begin with: cvt train",
        help_format="plaintext",
        suppress_keyboard_interrupt=False,
    )
    for verb, (where, line) in VERBS.items():
        app.command(f"cvt.cli.{where}", name=verb, help=line)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code."""
    # Whatever is started from here imports nothing from the current folder either.
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        code = make_app()(
            _with_stdin(list(sys.argv[1:] if arguments is None else arguments)),
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
        sys.stdout.flush()
        # To torchrun any other code is a process that was lost: it would start all of them again.
        return 0 if code == 1 and "TORCHELASTIC_RUN_ID" in os.environ else code or 0
    except UnknownOptionError as error:
        return _complain(shown(explain_unknown(error)), 2)
    except (CycloptsError, UserError) as error:
        if getattr(error, "is_told_elsewhere", False):
            return 2
        return _complain(" ".join(shown(line) for line in str(error).splitlines()), 2)
    except KeyboardInterrupt as stopped:
        return _complain(str(stopped) or "Interrupted.", 130)
    except BrokenPipeError:
        # Whoever read our output has had enough; keep Python's last flush quiet as well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _with_stdin(arguments: list[str]) -> list[str]:
    """Spells the `-` of `cvt predict -` as a path, since any other dash in front is an option's."""
    if arguments[:1] != ["predict"]:
        return arguments
    return ["/dev/stdin" if each == "-" else each for each in arguments]


def _complain(sentence: str, code: int) -> int:
    print(f"cvt: {sentence}", file=sys.stderr)
    return code
