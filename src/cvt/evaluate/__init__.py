"""Measuring a checkpoint on data: `evaluate(checkpoint, data)`."""

from cvt.evaluate.measure import evaluate
from cvt.evaluate.evaluation import ClassScore, Evaluation

__all__ = ["ClassScore", "Evaluation", "evaluate"]
