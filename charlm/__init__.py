"""Character-level language models, from the bigram table to a modern GPT.

Reading order is import order: `errors`, `config`, `storage`, `text`, `models`, `backprop`, `runs`,
`evaluation`, `sampling`, `training`, `lifecycle`, `cli`. Each package imports only from those before
it, so the course can be read from top to bottom. `charlm.models` is where the lessons are.

    import charlm

    for piece in charlm.load("runs/gpt").generate("ROMEO:"):
        print(piece, end="", flush=True)
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from charlm.sampling import load

__all__ = ["__version__", "load"]
__version__ = "0.1.0"

# NumPy's BLAS and torch share the cores: an idle BLAS thread should sleep after 2^22 cycles (a
# millisecond or two), not 2^26. The variable is read when NumPy is first imported.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "22")


def __getattr__(name: str) -> Any:
    # Imported on use, so that `charlm --help` does not wait for torch.
    if name == "load":
        from charlm.sampling import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
