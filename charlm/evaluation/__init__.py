"""Honest numbers: every character of a text scored once, by a named protocol, with an interval.

Read in this order: `score` (the units, and how sure a figure is), `protocols` (how a text is cut),
`unknown` (characters that a model has no id for), `scoring`, then `baselines` (what counting alone
reaches).
"""

from charlm.evaluation.baselines import Ladder, Rung, climb
from charlm.evaluation.score import Interval, Score
from charlm.evaluation.scoring import score_text, score_windows

__all__ = [
    "Interval",
    "Ladder",
    "Rung",
    "Score",
    "climb",
    "score_text",
    "score_windows",
]
