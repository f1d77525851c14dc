"""Turn a prompt into ids that a model can continue."""

import numpy as np
import numpy.typing as npt

from charlm.errors import DataError, Phrase, Setting
from charlm.text.tokenizer import Tokenizer, Unknown


def encode_prompt(
    tokenizer: Tokenizer, prompt: str, unknown: Unknown = "error"
) -> npt.NDArray[np.int64]:
    """Return the ids of a prompt, at least one.

    An empty prompt becomes a newline, which starts a line in most texts, or the first symbol of an
    alphabet without newlines.

    Args:
        tokenizer: The model's.
        prompt: What to continue.
        unknown: `error` refuses a character outside the alphabet, `skip` leaves it out,
            `nearest` writes it as the alphabet can.

    Raises:
        DataError: A character is not in the alphabet.
    """
    try:
        ids = tokenizer.encode(prompt, unknown)
    except DataError as error:
        mend = Phrase(
            "use {} to replace them by similar characters, or {} to leave them out",
            Setting("unknown", "nearest"),
            Setting("unknown", "skip"),
        )
        raise error.replace(where=Setting("prompt"), mend=mend) from None
    if not len(ids):
        ids = tokenizer.encode("\n", "skip")
    if not len(ids):
        ids = np.zeros(1, np.int64)
    return ids.astype(np.int64)
