"""The cost of a run by arithmetic: FLOPs, memory, disk. Each model's class states its own costs."""

from charlm.config import memory
from charlm.config.memory import human_bytes
from charlm.config.schema import Config
from charlm.errors import MachineError, UsageError


def flops_per_step(config: Config, vocab_size: int) -> int:
    """Estimate the floating-point operations of forward and backward in one optimizer update.

    For a mixture: one update of each expert that it trains. Counting takes negligibly few.
    """
    trained = config.model.to_train(config.train).values()
    return sum(t.batch_size * m.block_size * m.flops_per_char(vocab_size) for m, t in trained)


def checkpoint_bytes(config: Config, vocab_size: int, train_chars: int = 0) -> int:
    """Estimate the size of one checkpoint: weights and AdamW's two moments, in float32.

    `train_chars` is the length of the training part. For a mixture: its own checkpoint, which has
    weights only, and one for each expert that it trains.
    """
    model, trained = config.model, config.model.to_train(config.train).values()
    size = 12 * sum(one.parameter_count(vocab_size) for one, _ in trained)
    if model.trained_by != "gradients":
        size += 4 * model.parameter_count(vocab_size)
    return size + model.likely_table_bytes(vocab_size, train_chars)


def training_bytes(config: Config, vocab_size: int) -> dict[str, int]:
    """Estimate the memory of training in float32, by purpose, in bytes.

    For a mixture: that of its largest expert, since experts are trained one after another. Counting
    has its own memory budget and takes nothing here.
    """
    each = []
    for model, train in config.model.to_train(config.train).values():
        n = model.parameter_count(vocab_size)
        chars = (train.micro_batch_size or train.batch_size) * model.block_size
        kept = 4 * chars * model.activation_floats(vocab_size, train.gradients == "by_hand")
        held = {"weights": 4 * n, "gradients": 4 * n, "optimizer": 8 * n, "activations": kept}
        buffers = model.buffer_bytes()
        each.append(held | ({"constants": buffers} if buffers else {}))
    return max(each, key=lambda held: sum(held.values()), default={})


def check_memory(config: Config, vocab_size: int) -> None:
    """Refuse a configuration whose weights or activations cannot fit into memory.

    Raise UsageError if the estimate exceeds the machine's memory, MachineError if it exceeds this
    process's limit.
    """
    needed, total = sum(training_bytes(config, vocab_size).values()), memory.physical_bytes()
    where = "model and train"
    what = f"training needs about {human_bytes(needed)} of memory and this "
    lower = "lower n_layer, n_embd, block_size or micro_batch_size"
    if needed > total:
        raise UsageError(where, f"{what}machine has {human_bytes(total)}", lower)
    for limit, name in memory.memory_limits():
        used = memory.in_use(name)
        if needed > limit - used:
            what += f"process may use {human_bytes(limit)} ({name})"
            if needed <= limit:
                what += f", {human_bytes(used)} of it in use"
                lower = "lower n_embd or batch_size"
            raise MachineError(where, what, f"raise that, or {lower}")
