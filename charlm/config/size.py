"""What a configuration costs, as arithmetic: parameters, FLOPs, memory. Builds no tensor.

Tests hold every count against the real model's. C is `n_embd`, V the vocabulary, T `block_size`.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from charlm.config.schema import (
    SEEDS,
    Config,
    GPTConfig,
    MixtureConfig,
    ModelConfig,
    NGramConfig,
)
from charlm.errors import MachineError, UsageError

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

ADDRESSES = "ulimit -v"  # counts what is reserved too, not what is used alone
SEGMENTS = "ulimit -d"
LEAST_BYTES = 256 << 20  # measured: Python, NumPy and torch take 190 MB, and 600 of addresses
LEAST_ADDRESSES = 1 << 30

NGRAM_ROWS = 8192  # for each n, of `charlm.models.ngram_embedding`, which imports torch


@dataclass(frozen=True)
class Part:
    """One kind of weight in a model."""

    name: str
    shape: tuple[int, ...]
    copies: int = 1
    multiplies: bool = True  # a matrix product with every character, rather than a look-up

    @property
    def parameters(self) -> int:
        """Number of scalars in all copies."""
        count = self.copies
        for size in self.shape:
            count *= size
        return count


def trained(config: Config) -> dict[str, Config]:
    """Return what is trained, each as a run of its own: a mixture's experts by name, one by one.

    Counted models and experts of runs are not trained; a model that is no mixture has no name ("").
    Each expert has a seed of its own, and so reads other windows: those that are alike in all else
    then err apart, and their product errs less.
    """
    if not isinstance(config.model, MixtureConfig):
        return {} if isinstance(config.model, NGramConfig) else {"": config}
    experts = {
        name: expert
        for name, expert in config.model.experts.items()
        if expert.run is None and not isinstance(expert.model, NGramConfig)
    }
    found = {}
    for i, (name, expert) in enumerate(experts.items()):
        run = config.run.model_copy(update={"seed": (config.run.seed + i) % SEEDS})
        found[name] = config.model_copy(
            update={"model": expert.model, "train": expert.train, "run": run}
        )
    return found


def held_back(length: int, tune_fraction: float) -> int:
    """Return how many characters at the end of a training part a mixture's weights are fitted on."""
    return int(length * Fraction(str(tune_fraction)))


def parts(model: ModelConfig, vocab_size: int) -> list[Part]:
    """List the weights of a model in reading order; tied weights stand once.

    A counted model has none: its tables are as large as the text has distinct n-grams. A mixture
    has its experts', each under its expert's name; those of a run that was not read yet are unknown
    and left out.
    """
    v, t, c = vocab_size, model.block_size, getattr(model, "n_embd", 0)
    match model.type:
        case "ngram":
            return []
        case "bigram":
            return [Part("table", (v, v), multiplies=False)]
        case "averaging":
            return [
                Part("token_embedding", (v, c), multiplies=False),
                Part("head.weight", (v, 2 * c)),
                Part("head.bias", (v,), multiplies=False),
            ]
        case "attention" | "multihead":
            return [
                Part("token_embedding", (v, c), multiplies=False),
                Part("position_embedding", (t, c), multiplies=False),
                Part("query, key, value", (3 * c, c)),
                *([Part("projection", (c, c))] if model.type == "multihead" else []),
                Part("head.weight", (v, c)),
                Part("head.bias", (v,), multiplies=False),
            ]
        case "gpt":
            blocks = [
                Part("blocks.attention.qkv", (3 * c, c), model.n_layer),
                Part("blocks.attention.projection", (c, c), model.n_layer),
                Part("blocks.mlp.expand", (4 * c, c), model.n_layer),
                Part("blocks.mlp.contract", (c, 4 * c), model.n_layer),
            ]
            if model.style == "modern":
                tables = [Part("token_embedding", (v, c), multiplies=False)]
                if model.n_gram > 1:
                    rows = (model.n_gram - 1) * NGRAM_ROWS
                    tables.append(Part("ngram_embedding", (rows, c), multiplies=False))
                return [*tables, *blocks, Part("head", (v, c))]
            return [
                Part("token_embedding = head", (v, c)),
                Part("position_embedding", (t, c), multiplies=False),
                Part("blocks.norms", (2, c), model.n_layer, multiplies=False),
                *blocks,
                Part("final_norm", (c,), multiplies=False),
            ]
        case "mixture":
            return [
                replace(part, name=f"{name}.{part.name}")
                for name, expert in model.experts.items()
                if expert.model is not None
                for part in parts(expert.model, vocab_size)
            ]


def parameter_count(model: ModelConfig, vocab_size: int) -> int:
    """Count the trainable scalars of a model."""
    return sum(part.parameters for part in parts(model, vocab_size))


def flops_per_char(model: ModelConfig, vocab_size: int) -> int:
    """Estimate the floating-point operations to train on one character, forward and backward.

    6 for each weight that multiplies (2 forward, 4 backward), and 12 T C for each layer of
    attention: PaLM (Chowdhery et al. 2022), appendix B. Look-ups and element-wise work count zero.
    """
    flops = 6 * sum(p.parameters for p in parts(model, vocab_size) if p.multiplies)
    layers = {"attention": 1, "multihead": 1, "gpt": getattr(model, "n_layer", 1)}
    width = getattr(model, "n_embd", 0)
    flops += 12 * layers.get(model.type, 0) * model.block_size * width
    if model.type == "averaging":
        flops += 4 * model.block_size * width  # the matrix is constant: no gradient for it
    return flops


def flops_per_step(config: Config, vocab_size: int) -> int:
    """Estimate the floating-point operations of one optimizer update, the optimizer's left out.

    Of a mixture: one update of each expert that it trains. Counting has none worth a number.
    """
    return sum(
        one.train.batch_size * one.model.block_size * flops_per_char(one.model, vocab_size)
        for one in trained(config).values()
    )


REPEATS = 4


def table_bytes(model: NGramConfig, vocab_size: int, train_chars: int) -> int:
    """Return the most that the tables of an n-gram can take: 16 bytes for each that is distinct.

    Of k characters there are at most V^k, and no more than places in the text to begin at.
    """
    counted = min(train_chars, model.last_chars or train_chars)
    return 16 * sum(min(int(vocab_size**k), counted) for k in range(1, model.order + 1))


def checkpoint_bytes(config: Config, vocab_size: int, train_chars: int = 0) -> int:
    """Estimate the size of one checkpoint: weights and AdamW's two moments, in float32.

    An n-gram's tables are estimated at a fourth of the most they can take: texts repeat
    themselves (order 7 keeps a fifth of it for Tiny Shakespeare, a sixteenth for python-stdlib).
    Of a mixture: its own, weights alone, and one of each expert that it trains.

    Args:
        config: The run.
        vocab_size: Number of distinct characters (V).
        train_chars: Characters of the training part, for the tables of counted models.
    """
    model, trains = config.model, trained(config).values()
    size = 12 * sum(parameter_count(one.model, vocab_size) for one in trains)
    if isinstance(model, MixtureConfig):
        size += 4 * parameter_count(model, vocab_size)
        models: list[ModelConfig | None] = [expert.model for expert in model.experts.values()]
    else:
        models = [model]
    tables = (m for m in models if isinstance(m, NGramConfig))
    return size + sum(table_bytes(m, vocab_size, train_chars) // REPEATS for m in tables)


def training_bytes(config: Config, vocab_size: int) -> dict[str, int]:
    """Estimate the memory of training in float32, by what holds it, in bytes.

    Activations are a rough count of what a block keeps for its backward pass (16 C floats a
    character) and of logits, their log-softmax and its gradient (3 V floats a character). Of
    attention's (T, T) weights (H T floats a character) the fused kernel keeps none, plain products,
    which a CPU uses up to 512 characters, one copy, and gradients by hand too; with dropout it is
    the weights, the mask and their product.

    Of a mixture, whose experts are trained one after another: those of the largest. A counted model
    counts within a budget of its own: nothing here.
    """
    if config.model.type in ("ngram", "mixture"):
        each = [training_bytes(one, vocab_size) for one in trained(config).values()]
        return max(each, key=lambda memory: sum(memory.values()), default={})
    n, model = parameter_count(config.model, vocab_size), config.model
    chars = (config.train.micro_batch_size or config.train.batch_size) * model.block_size
    layers = model.n_layer if isinstance(model, GPTConfig) else 1
    a_block = 16 * getattr(model, "n_embd", 0)
    if model.type in ("attention", "multihead", "gpt"):
        by_hand = config.train.gradients == "by_hand"
        plain = by_hand or model.block_size <= 512
        copies = 3 if getattr(model, "dropout", 0) else int(plain)
        a_block += copies * getattr(model, "n_head", 1) * model.block_size
    memory = {
        "weights": 4 * n,
        "gradients": 4 * n,
        "optimizer": 8 * n,
        "activations": 4 * chars * (layers * a_block + 3 * vocab_size),
    }
    return memory | ({"averages": matrix_bytes(model)} if model.type == "averaging" else {})


def matrix_bytes(model: ModelConfig) -> int:
    """Return what the averaging model's (T, T) matrix takes while it is made: the ones beside it."""
    if isinstance(model, MixtureConfig):
        return sum(matrix_bytes(one.model) for one in model.experts.values() if one.model)
    return 8 * model.block_size**2 if model.type == "averaging" else 0


def check_memory(config: Config, vocab_size: int) -> None:
    """Refuse a configuration whose weights or activations cannot fit into memory.

    Raises:
        UsageError: The estimate exceeds the machine's whole memory.
        MachineError: It exceeds what this process may have of it.
    """
    needed, total = sum(training_bytes(config, vocab_size).values()), physical_bytes()
    problem = f"model and train: training needs about {human_bytes(needed)} of memory and this "
    lower = "lower n_layer, n_embd, block_size or micro_batch_size"
    if needed > total:
        raise UsageError(f"{problem}machine has {human_bytes(total)}; {lower}")
    for limit, name in memory_limits():
        used = _in_use(name)
        if needed > limit - used:
            mend = f"; raise that, or {lower}"
            if needed <= limit:
                mend = (
                    f", {human_bytes(used)} of it in use; raise that, or lower n_embd or batch_size"
                )
            raise MachineError(f"{problem}process may use {human_bytes(limit)} ({name}){mend}")


def check_room() -> None:
    """Refuse to begin where not even torch fits: importing it would end in a crash.

    Raises:
        MachineError: With the limit, and what it should be at least.
    """
    for limit, name in memory_limits():
        least = LEAST_ADDRESSES if name == ADDRESSES else LEAST_BYTES
        if limit < least:
            raise MachineError(
                f"memory: this process may use {human_bytes(limit)} ({name}), and needs "
                f"{human_bytes(least)} before it has a model; raise the limit"
            )


def machine_bytes() -> int:
    """Return the memory that this process may have at most, in bytes."""
    return min([physical_bytes(), *(limit for limit, _ in memory_limits())])


def physical_bytes() -> int:
    """Return the machine's physical memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_limits(root: Path = Path("/")) -> list[tuple[int, str]]:
    """Return the limits of this process's memory, each in bytes and with its name.

    Those of its control groups, which containers and batch systems set (cgroup v1 and v2), and
    those of the shell (`ulimit -v`, `ulimit -d`). Empty where there are none.

    Args:
        root: Where `proc` and `sys` are.
    """
    found = [*_group_limits(root)]
    if resource:
        kinds = {resource.RLIMIT_AS: ADDRESSES, resource.RLIMIT_DATA: SEGMENTS}
        for kind, name in kinds.items():
            limit = resource.getrlimit(kind)[0]
            if limit != resource.RLIM_INFINITY:
                found.append((limit, name))
    return found


def _in_use(name: str) -> int:
    """Return what this process has by now of a limit that has this name, in bytes."""
    field = {ADDRESSES: "VmSize:", SEGMENTS: "VmData:"}.get(name, "VmRSS:")
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # no Linux
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field)), 0)


def _group_limits(root: Path) -> Iterator[tuple[int, str]]:
    """Yield the limits of the control groups, from the innermost to the whole machine's."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:  # 0::/user.slice (v2) or 4:memory:/docker/1f (v1)
        controllers, _, group = line.partition(":")[2].partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = root / "sys/fs/cgroup", "memory.max"
        if controllers:
            top, name = top / "memory", "memory.limit_in_bytes"
        inner = top / group.lstrip("/")
        # A container may see its own group at the top, and not where its name says.
        for folder in (inner, *inner.parents):
            with contextlib.suppress(OSError, ValueError):  # not there; or `max`: none
                limit = int((folder / name).read_text())
                if limit < 1 << 60:  # v1 says so for none
                    yield limit, name
            if folder == top:
                break


def human_bytes(count: int) -> str:
    """Write a number of bytes as people read it: 1.5 GiB."""
    size = Decimal(count)  # a slip of the keyboard may ask for more than a float can say
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} EiB"
