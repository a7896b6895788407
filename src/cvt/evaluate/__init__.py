"""Measuring a checkpoint on data: `evaluate(checkpoint, data)`."""

from cvt.evaluate.evaluation import ClassScore, Evaluation
from cvt.evaluate.measure import evaluate

__all__ = ["ClassScore", "Evaluation", "evaluate"]
