"""Measuring a checkpoint: on data, by ImageNet's benchmarks, and by its frozen features."""

from cvt.evaluation.evaluate import evaluate
from cvt.evaluation.imagenet import BENCHMARKS, CorruptionScores, RealScore, evaluate_benchmark
from cvt.evaluation.probe import Probe, ProbeScore, probe
from cvt.evaluation.scores import ClassScore, Evaluation, Reliability

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
