"""`cvt predict CHECKPOINT IMAGE...`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from cvt.cli.flags import Device, Json
from cvt.cli.output import print_json
from cvt.errors import UserError

if TYPE_CHECKING:
    from cvt.predict import Prediction


def predict(
    checkpoint: str,
    /,
    *images: Annotated[str, Parameter(allow_leading_hyphen=True)],
    top_k: Annotated[int, Parameter(name=["--top-k", "-k"])] = 5,
    batch_size: int = 16,
    device: Device = "auto",
    json: Json = False,
) -> int:
    """Say what images show.

    Parameters
    ----------
    checkpoint
        A run folder, a checkpoint file, a hub id or the name of published weights.
    images
        Files, folders, quoted patterns such as 'photos/*.jpg', or - for stdin (a picture's bytes,
        or file names, one a line).
    top_k
        Labels for each image.
    batch_size
        Images per forward pass.
    """
    from cvt.data.inputs import find_images
    from cvt.predict import Predictor

    if not images:
        raise UserError("Got no image; name files, folders or patterns, or - for stdin.")
    predictor = Predictor(checkpoint, device=device, batch_size=batch_size)
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


def _print(prediction: "Prediction") -> None:
    if prediction.error:
        print(f"cvt: skipped: {prediction.error}", file=sys.stderr)
        return
    print(Path(prediction.image))
    for label in prediction.labels:
        print(f"  {label.probability:7.2%}  {label.name}")
