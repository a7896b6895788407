"""The exact inference form of a network, in PyTorch and in OpenVINO, and its files for others."""

from cvt.inference.agreement import Agreement, agreement
from cvt.inference.api import ENGINES, deploy
from cvt.inference.int8 import Calibration, calibration_images
from cvt.inference.passes import PASSES
from cvt.inference.rewrite import Deployed, choose_target

__all__ = [
    "ENGINES",
    "PASSES",
    "Agreement",
    "Calibration",
    "Deployed",
    "agreement",
    "calibration_images",
    "choose_target",
    "deploy",
]
