"""Measuring a checkpoint: on data, by ImageNet's benchmarks, and by its frozen features."""

from cvt.evaluate.benchmarks import BENCHMARKS, evaluate_benchmark
from cvt.evaluate.calibration import Reliability
from cvt.evaluate.corruptions import CorruptionScores
from cvt.evaluate.evaluation import ClassScore, Evaluation
from cvt.evaluate.measure import evaluate
from cvt.evaluate.probing import Probe, ProbeScore, probe
from cvt.evaluate.real_labels import RealScore

__all__ = [
    "BENCHMARKS",
    "ClassScore",
    "CorruptionScores",
    "Evaluation",
    "Probe",
    "ProbeScore",
    "RealScore",
    "Reliability",
    "evaluate",
    "evaluate_benchmark",
    "probe",
]
