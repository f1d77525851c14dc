"""Honest numbers: `windows` scores a text once, `baselines` says what counting alone reaches."""

from charlm.evaluation.baselines import counted_bigram, counted_unigram
from charlm.evaluation.windows import Score, score_windows

__all__ = ["Score", "counted_bigram", "counted_unigram", "score_windows"]
