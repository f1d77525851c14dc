"""Models that leave the house and come in: without their text, and in the forms of other programs.

Read in this order: `card` (what a model is, in Markdown), `same` (whether what was written computes the
same), `alone` (charlm's own form), `npz` (NumPy), `hugging_face`, `export` (all forms in one call); `pickled` (a pickle without running it), `nanogpt` (its checkpoints).
"""

from charlm.exchange.export import FORMS, Exported, Form, export

__all__ = ["FORMS", "Exported", "Form", "export"]
