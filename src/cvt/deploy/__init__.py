"""The exact inference form of a network: `cvt.deploy(model)`.

The room and its front door share their name, as `cvt.deploy(model)` is what people write: the
package is a module that can be called. `cvt.deploy.deploy` is the same function.
"""

import sys
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import nn

from cvt.deploy.calibration import Calibrating, Calibration
from cvt.deploy.entry import deploy
from cvt.deploy.precision import Agreement, agreement

__all__ = ["Agreement", "Calibration", "agreement", "deploy"]


class _Room(ModuleType):
    """A package that is called like the function in it: a module may be given a class of its own.

    Source: the Python Language Reference, "Customizing module attribute access".
    """

    def __call__(
        self,
        model: nn.Module,
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        engine: str = "torch",
        without: Sequence[str] = (),
        calibration: Calibrating | None = None,
    ) -> nn.Module:
        return deploy(
            model,
            dtype=dtype,
            device=device,
            engine=engine,
            without=without,
            calibration=calibration,
        )


sys.modules[__name__].__class__ = _Room
