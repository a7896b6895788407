"""`cvt predict [CHECKPOINT] IMAGE...`."""

import glob
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from cvt.cli.flags import Device, Json
from cvt.cli.output import print_json
from cvt.errors import UserError
from cvt.weights.demo import DEMO

if TYPE_CHECKING:
    from cvt.predict import Prediction


def predict(
    *arguments: Annotated[
        str, Parameter(name="[CHECKPOINT] IMAGE...", allow_leading_hyphen=True, show_default=False)
    ],
    top_k: Annotated[int, Parameter(name=["--top-k", "-k"])] = 5,
    batch_size: int = 16,
    device: Device = "auto",
    json: Json = False,
) -> int:
    """Say what images show.

    Parameters
    ----------
    arguments
        First the model: a run folder, a checkpoint file, a hub id or the name of published weights;
        without one, the demo model, which knows the ten classes of CIFAR-10. Then images: files,
        folders, quoted patterns such as 'photos/*.jpg', or - for stdin (a picture's bytes, or file
        names, one a line).
    top_k
        Labels for each image.
    batch_size
        Images per forward pass.
    """
    from cvt.data.inputs import find_images
    from cvt.predict import Predictor

    checkpoint, images = _model_and_images(arguments) if arguments else (DEMO, ())
    if not images:
        raise UserError("Got no image; name files, folders or patterns, or - for stdin.")
    predictor = Predictor(checkpoint, device=device, batch_size=batch_size)
    if checkpoint == DEMO:
        names = ", ".join(predictor.class_names)
        print(f"cvt: this is the demo model, which knows {names}.", file=sys.stderr)
    num_bad = num_good = 0
    for prediction in predictor.stream(find_images(images, sys.stdin.buffer), top_k):
        num_bad += prediction.error is not None
        num_good += prediction.error is None
        if json:
            print_json(prediction.to_dict())
        else:
            _print(prediction)
    if num_bad:
        print(f"cvt: {num_bad} of {num_bad + num_good} inputs were skipped.", file=sys.stderr)
    return 0 if not num_bad else 1 if num_good else 2


def _model_and_images(arguments: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Tells the model, which may be left out, from the images.

    What exists is a model if it holds weights. What does not exist is one if it could be the name
    of one: a missing image is to be reported as that.
    """
    from cvt.data.folder import image_suffixes
    from cvt.weights.source import names_weights

    first, rest = arguments[0], arguments[1:]
    path = Path(first)
    is_missing_image = glob.has_magic(first) or path.suffix.lower() in image_suffixes()
    could_be_name = first != "-" and not path.exists() and not is_missing_image
    return (first, rest) if names_weights(first) or could_be_name else (DEMO, arguments)


def _print(prediction: "Prediction") -> None:
    if prediction.error:
        print(f"cvt: skipped: {prediction.error}", file=sys.stderr)
        return
    print(Path(prediction.image))
    for label in prediction.labels:
        print(f"  {label.probability:7.2%}  {label.name}")
