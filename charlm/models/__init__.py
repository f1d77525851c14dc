"""The lessons of docs/course.md: every model from one table to a modern GPT, each to be read.

Read in this order: `base` (the interface of every model), `adaptive` (models that learn while they
read), `bigram`, `loss` (the score of a prediction), `mlp`, `recurrent` (a state that each character updates), `averaging`, `bow`, `attention`, `gpt2`,
`ngram_embedding`, `modern`, `mingru` (a recurrence that a scan computes), `dynamic` (weights that are updated while a text is read); then
`counts`, `smoothing`, `counted_loss` (the losses of all orders at once), `kernel` (compiled loops),
`growing` (counts that grow while a text is read), `ngram` (a model by counting alone); then `view`
(what contexts may look at), `bit_tables`, `symbol_tree`, `undo`, `context_table`, `passages`,
`bit_mixing`, `bit_reading`, `mean_weights`, `context_mixing` (a model that mixes many contexts, bit by bit); then
`cache` (keys and values are computed once), `registry` (from a configuration to its model), `gate`
(which expert to trust when), `mixture` (several models as one), `adaptive_mixture` (a mixture that
learns while it reads), `bitwise` (a mixture joined by context mixing), `looking` (what the
heads of a trained model look at), `device`, `onednn` (faster products on some processors).

Letters in shapes: B batch, T time (characters, at most `block_size`), C channels (`n_embd`), H
heads, D `head_size` (C = H * D), V `vocab_size`.
"""

from charlm.models.adaptive import AdaptiveReader
from charlm.models.attention import AttentionModel, MultiHeadModel, attend, attend_plainly
from charlm.models.averaging import AveragingModel
from charlm.models.base import LanguageModel
from charlm.models.bigram import BigramModel
from charlm.models.gpt2 import GPT2
from charlm.models.loss import next_token_loss, surprisal
from charlm.models.mixture import MixtureModel
from charlm.models.modern import ModernGPT
from charlm.models.ngram import NGramModel
from charlm.models.registry import build_model

__all__ = [
    "GPT2",
    "AdaptiveReader",
    "AttentionModel",
    "AveragingModel",
    "BigramModel",
    "LanguageModel",
    "MixtureModel",
    "ModernGPT",
    "MultiHeadModel",
    "NGramModel",
    "attend",
    "attend_plainly",
    "build_model",
    "next_token_loss",
    "surprisal",
]
