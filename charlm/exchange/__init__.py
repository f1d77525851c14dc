"""Models that leave the house: in charlm's own form without their text, or in those of other programs.

Read in this order: `card` (what a model is, in Markdown), `same` (whether what was written computes the
same), `alone` (charlm's own form), `npz` (NumPy), `hugging_face`, `export` (all forms in one call).
"""

from charlm.exchange.export import FORMS, Exported, Form, export

__all__ = ["FORMS", "Exported", "Form", "export"]
