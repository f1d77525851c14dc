"""Training: one loop drives a learner; plans for a time budget; a learning-rate test.

Read in this order: `schedule` (the learning rate), `slots` (memory that processes share), `ranks`
(several processes), `meeting` (how they find each other), `muon` and `adamw` (optimizers), `optimizers` (which
update which weights), `loading` (kernels, before the first step), `compile_cost` (what compiling costs
and saves), `compiling` (torch.compile, where it pays), `kept_memory` (from one step to the next),
`threads` (how many, in a budget), `summing` (gradients of micro-batches, in one order for any number of processes), `sharing`
(the work of Muon, shared), `sharding` (weights that are split among processes), `learner` (its interface),
`carrying` (a state, from window to window), `gradients` (the training step), `counting` (n-grams), `saving` (a checkpoint), `loop` (a run), `expert` (a run inside
a mixture), `fitting` (the weights of a mixture), `joining` (mixtures), `bitwise` (those joined bit by bit), `plan` (model sizes for a time budget),
`range_test` (the range of useful learning rates).
"""

from charlm.training.learner import Clock, Job, Learner
from charlm.training.loop import TrainingLoop
from charlm.training.optimizers import build_optimizers
from charlm.training.schedule import learning_rate

__all__ = ["Clock", "Job", "Learner", "TrainingLoop", "build_optimizers", "learning_rate"]
