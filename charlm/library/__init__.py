"""The library: train, load, sample and score from Python. `charlm` itself offers these names.

Read in this order: `overrides` (settings as Python values), `texts` (any text), `interrupts`, `run`,
`heads`, `model`, `comparing`, `training`, `sharing`.
"""

from charlm.library.comparing import Compared, baselines, compare
from charlm.library.model import Model, Score, load
from charlm.library.run import Run, open_run
from charlm.library.sharing import export
from charlm.library.training import train

__all__ = [
    "Compared",
    "Model",
    "Run",
    "Score",
    "baselines",
    "compare",
    "export",
    "load",
    "open_run",
    "train",
]
