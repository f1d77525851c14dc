"""Score a text: each character once, by a named protocol, with a confidence interval.

Read in this order: `score` (units and the interval), `protocols` (how a text is cut into windows),
`unknown` (characters that a model has no id for), `scoring`, `characters` (scores as records),
`given` (texts that are not part of a run), and `baselines` (models that need no training).
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
