"""Scores against a known truth, and what those of many cases say."""

from fusion_pipeline.evaluation.statistics import (
    Comparison,
    Summary,
    compare,
    holm,
    interval_of_mean,
    summarize,
)
from fusion_pipeline.evaluation.truth import Scores, evaluate, recovery_table

__all__ = [
    "Comparison",
    "Scores",
    "Summary",
    "compare",
    "evaluate",
    "holm",
    "interval_of_mean",
    "recovery_table",
    "summarize",
]
