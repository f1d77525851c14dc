"""Score a text: every character once, by a named protocol, with a confidence interval.

Read in this order: `score` (units and intervals), `protocols` (how a text is cut into windows),
`records` (each by itself), `unknown` (characters that the model does not know), `given` (the text to
score), `repeats` (whether it was trained on), `remarks` (what is odd about it), `predicting` (the
model at work), `scoring`, `each`
(a score for each of many texts), `comparison` (several runs), `ladder` (a table of baselines),
`compressors`, `baselines` (these and n-grams); then `known` (which texts a part holds), `nearest` (the record next to a text), `copied` (the
longest span that a text shares with a part), `given_texts`, `novelty` (all of these).
"""

from charlm.evaluation.baselines import climb
from charlm.evaluation.ladder import Ladder, Rung
from charlm.evaluation.score import Interval, Score
from charlm.evaluation.scoring import score_text, score_windows

__all__ = ["Interval", "Ladder", "Rung", "Score", "climb", "score_text", "score_windows"]
