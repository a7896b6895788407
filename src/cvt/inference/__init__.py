"""The exact inference form of a network, and its files for other runtimes."""

from cvt.inference.agreement import Agreement, agreement
from cvt.inference.api import deploy
from cvt.inference.int8 import Calibration

__all__ = ["Agreement", "Calibration", "agreement", "deploy"]
