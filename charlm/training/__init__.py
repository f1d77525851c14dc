"""The loop and what it needs: `schedule`, `optimizers`, `compiling`, `loop`.

Then the runs that are not all steps: `fit` (counted models), `mix`
(mixtures); `kinds` chooses.
"""

from charlm.runs.state import TrainingState, load_checkpoint, save_checkpoint
from charlm.training.kinds import trainer_for
from charlm.training.loop import Record, Trainer
from charlm.training.optimizers import build_optimizers
from charlm.training.schedule import learning_rate

__all__ = [
    "Record",
    "Trainer",
    "TrainingState",
    "build_optimizers",
    "learning_rate",
    "load_checkpoint",
    "save_checkpoint",
    "trainer_for",
]
