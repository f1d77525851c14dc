"""Honest numbers: `windows` scores a text once, `baselines` says what counting alone reaches."""

from charlm.evaluation.baselines import counted_bigram
from charlm.evaluation.windows import Score, score_windows

__all__ = ["Score", "counted_bigram", "score_windows"]
