"""Training: one loop drives a learner, and plans and tests beside it.

Read in this order: `schedule` (the learning rate), `muon` (an optimizer), `optimizers` (which update
which weights), `compiling` (torch.compile, where it pays), `learner`
(what the loop asks of one), `gradients` (the training step), `counting` (n-grams), `loop` (a run),
`expert` (a run inside a mixture), `joining` (mixtures), `plan` (what a budget of minutes buys),
`range_test` (which learning rates learn).
"""

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
]
