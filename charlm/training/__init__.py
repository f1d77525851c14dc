"""Training: a loop that drives a learner.

Read `schedule`, `muon`, `optimizers`, `compiling`, then `learner` (what the loop asks of one),
`gradients` (the training step), `counting`, and `loop`. A mixture is `expert`, `tuning` and `joining`.
Beside the runs: `plan` (what a budget of minutes buys) and `range_test` (which learning rates learn).
"""

from charlm.training.begin import training_loop
from charlm.training.learner import Clock, Job, Learner
from charlm.training.loop import TrainingLoop
from charlm.training.optimizers import build_optimizers
from charlm.training.schedule import learning_rate

__all__ = [
    "Clock",
    "Job",
    "Learner",
    "TrainingLoop",
    "build_optimizers",
    "learning_rate",
    "training_loop",
]
