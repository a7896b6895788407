"""`cvt predict [CHECKPOINT] IMAGE...`."""

import os
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from cvt.cli.flags import Device, JsonLines, Precision
from cvt.cli.output import print_json, say, warn
from cvt.errors import UserError
from cvt.files import url_in
from cvt.weights.published import DEMO

if TYPE_CHECKING:
    from cvt.prediction import Prediction


def predict(
    *arguments: Annotated[
        str,
        Parameter(
            name="[CHECKPOINT] IMAGE...",
            show_default=False,
            help="First the model: a run folder, a checkpoint file, a hub id or the name of "
            "published weights; without one, the demo model, which knows 200 kinds of things. "
            "Then images: files, folders, quoted patterns such as 'photos/*.jpg', or - for stdin "
            "(an image's bytes, or file names, one a line). Put -- before names that begin with a "
            "dash.",
        ),
    ],
    top_k: Annotated[
        int, Parameter(name=["--top-k", "-k"], help="Labels for each image, likeliest first.")
    ] = 5,
    batch_size: Annotated[int, Parameter(help="Images per forward pass.")] = 16,
    device: Device = "auto",
    precision: Precision = "auto",
    json: JsonLines = False,
) -> int:
    """Say what images show.

    Prints the likeliest classes of each image with their probabilities. An image that cannot be
    used is named and skipped, and the exit code is 1.
    """
    from cvt.data.walk import find_images
    from cvt.prediction import Predictor

    checkpoint, images = _model_and_images(arguments) if arguments else (DEMO, ())
    if not images:
        raise UserError("Got no image; name files, folders or patterns, or - for stdin.")
    stdin = getattr(sys.stdin, "buffer", None)  # none at all if it was closed
    found = find_images([_STDIN.get(each, each) for each in images], stdin, on_note=warn)
    if checkpoint == DEMO:
        found = _checked(found, images[0])
    predictor = Predictor(checkpoint, device=device, precision=precision, batch_size=batch_size)
    if checkpoint == DEMO:
        names = predictor.class_names
        some = ", ".join(names[:: -(-len(names) // _NAMED)])
        warn(f"this is the demo model, which knows {len(names)} kinds of things, such as {some}.")
    num_bad = num_good = 0
    for prediction in predictor.stream(found, top_k):
        num_bad += prediction.error is not None
        num_good += prediction.error is None
        if json:
            print_json(prediction)
        else:
            _print(prediction)
    if num_bad:
        warn(f"{num_bad} of {num_bad + num_good} inputs were skipped.")
    return 0 if not num_bad else 1 if num_good else 2


_NAMED = 8  # of the things that the demo model knows, spread over all of them
_STDIN = {"/dev/stdin": "-"}  # which `main` spells so


def _model_and_images(arguments: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Tells the model, which may be left out, from the images.

    What exists is a model if it holds weights. What does not exist is one if it could be the name
    of one: a missing image is to be reported as that. What exists and is neither is an error: it
    may have been meant as a model, whose answers the demo's would be taken for.
    """
    from cvt.data.formats import SUFFIXES
    from cvt.data.walk import is_pattern
    from cvt.weights.source import names_weights

    first, rest = arguments[0], arguments[1:]
    if first in _STDIN:
        return DEMO, arguments
    if os.path.isfile(first):
        _refuse_exported(first)
    if names_weights(first):
        return first, rest
    if os.path.exists(first):
        _check_may_be_images(first)
        return DEMO, arguments
    is_missing_image = (
        is_pattern(first)
        or Path(first).suffix.lower() in SUFFIXES
        or (url_in(first) is not None and not rest)
    )
    return (DEMO, arguments) if is_missing_image else (first, rest)


def _refuse_exported(first: str) -> None:
    from cvt.inference.export import FORMATS

    for each in FORMATS.values():
        if first.lower().endswith(each.suffixes):
            raise UserError(
                f"Got {first}, an exported network ({each.title}), which runs without this "
                "library: by the program that cvt export printed. Name the checkpoint that it was "
                "made from."
            )


def _check_may_be_images(first: str) -> None:
    from cvt.data.formats import SUFFIXES, looks_like_image
    from cvt.training.run_folder import CONFIG_FILE

    if os.path.isdir(first):
        if os.path.isfile(os.path.join(first, CONFIG_FILE)):
            raise UserError(
                f"Got the run folder {first}, which holds no weights yet; wait for its first epoch."
            )
        return
    if Path(first).suffix.lower() in SUFFIXES or not os.path.isfile(first):
        return
    try:
        with open(first, "rb") as file:
            start = file.read(4096)
    except OSError as error:
        raise UserError(f"Cannot read {first}: {error.strerror or error}.") from error
    if not looks_like_image(start):
        raise UserError(
            f"Got {first}, which holds neither weights nor an image, expected a checkpoint or an "
            "image first."
        )


def _checked(found: Iterator[Any], first: str) -> Iterator[Any]:
    """Returns the same images, if a folder that is named first holds any."""
    from cvt.data import BadImage

    if not os.path.isdir(first):
        return found
    one = next(found)
    if isinstance(one, BadImage):
        raise UserError(f"{one} There are no weights in it either.")
    return chain([one], found)


def _print(prediction: "Prediction") -> None:
    if prediction.error:
        warn(f"skipped: {prediction.error}")
        return
    name = prediction.image
    # A name that begins with a blank could look like a label.
    say(f"./{name}" if name[:1].isspace() else name)
    for label in prediction.labels:
        say(f"  {label.probability:7.2%}  {label.name}")
