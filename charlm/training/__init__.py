"""Training: one loop that drives a learner.

Read in this order: `learner` (what the loop asks of one), `loop`; then gradient descent:
`schedule`, `muon`, `optimizers`, `compiling`, `non_finite`, `gradients` (the training step); then
`counting`, and mixtures: `expert`, `tuning`, `joining`; then `begin` (from a configuration to its
loop), `plan` (a model for a time budget) and `range_test` (which learning rates learn).
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
