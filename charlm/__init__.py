"""Character-level language models, from the bigram table to a modern GPT.

Reading order is import order: `errors`, `config`, `storage`, `text`, `models`, `backprop`, `runs`,
`evaluation`, `sampling`, `coding`, `fused`, `training`, `costs`, `lifecycle`, `reporting`,
`exchange`, `library`, `serving`, `cli`. Each package imports only from those before it, so the course can be read from top
to bottom. `charlm.models` is where the lessons are.

    import charlm
    from pathlib import Path

    run = charlm.train("gpt", Path("my.txt"), minutes=5)
    model = charlm.load(run)
    print(model.generate("ROMEO:", seed=1))
    print(model.score("To be, or not to be").bits_per_char)
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from charlm.library import Model, Run, Score, baselines, compare, export, load, train
    from charlm.library import open_run as open

__all__ = [
    "Model",
    "Run",
    "Score",
    "__version__",
    "baselines",
    "compare",
    "errors",
    "export",
    "load",
    "open",
    "train",
]
__version__ = "0.1.0"

# NumPy's BLAS and torch share the cores: an idle BLAS thread should sleep after 2^22 cycles (a
# millisecond or two), not 2^26. The variable is read when NumPy is first imported.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "22")
# torch's threads wait for each other thousands of times in a step. GNU's OpenMP lets them spin for
# some 15 ms: beside another busy program, the thread that they wait for is the one that
# cannot run, and a step takes thirty times as long. After a thousand turns (50 microseconds, about
# what waking a thread costs) they sleep. No bit depends on it. It is read when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def __getattr__(name: str) -> Any:
    # Imported on use, so that `charlm --help` does not wait for torch.
    if name == "errors":
        return import_module("charlm.errors")
    if name in __all__:
        return getattr(import_module("charlm.library"), "open_run" if name == "open" else name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
