"""`cvt convert SOURCE TARGET`."""

from typing import Annotated, Literal

from cyclopts import Parameter

from cvt.cli.flags import Checkpoint
from cvt.cli.output import say


def convert(
    source: Checkpoint,
    target: Annotated[str, Parameter(help="File or folder to write.")],
    /,
    *,
    to: Annotated[
        Literal["cvt", "microsoft", "hugging_face", "timm"] | None,
        Parameter(help="Layout; by default what TARGET's name says."),
    ] = None,
) -> None:
    """Write a checkpoint in another library's layout.

    A target ending in .safetensors gets this library's layout, .pth Microsoft's, anything else
    becomes a Hugging Face folder; --to timm makes a folder for timm and transformers.
    """
    from cvt.weights.convert import convert as run

    note = run(source, target, to=to)
    say(f"Wrote {target}.")
    if note:
        say(note)
