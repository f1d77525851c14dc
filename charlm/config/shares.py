"""Who computes what: the micro-batches of a step, shared by processes."""

from collections.abc import Sequence

from charlm.errors import Phrase, Setting, UsageError, number_of


def own_share(micro_batches: int, rank: int, processes: int) -> range:
    """Return the micro-batches of a step that one of the processes computes; neighbours, from 0."""
    count = micro_batches // processes
    return range(rank * count, (rank + 1) * count)


def can_share(micro_batches: int, processes: int, exact: bool) -> bool:
    """Tell whether so many processes can share the micro-batches of a step.

    To be exact, each must have a branch of the tree: 1, 2, 4, 8, ... of them.
    """
    share, rest = divmod(micro_batches, processes)
    return not rest and (not exact or processes == 1 or share & (share - 1) == 0)


def check_shares(micro_batches: int, processes: int, exact: bool) -> None:
    """Raise UsageError unless `can_share` allows this; the error names the numbers that will do."""
    if can_share(micro_batches, processes, exact):
        return
    found = [n for n in range(1, micro_batches + 1) if can_share(micro_batches, n, exact)]
    what = f"{number_of(micro_batches, 'micro-batch', 'micro-batches')} in a step"
    mend = start_one_of(found, "train.micro_batch_size")
    if micro_batches == 1:
        keys = Setting("train.micro_batch_size"), Setting("train.batch_size")
        mend = Phrase("make {} smaller than {}", *keys)
    raise UsageError(f"{processes} processes", f"cannot share {what}", mend)


def start_one_of(counts: Sequence[int], key: str) -> Phrase:
    """Return the advice to start another number of processes, or to change a key."""
    *few, last = map(str, counts)
    listed = f"{', '.join(few)} or {last}" if few else last
    return Phrase("start {} of them, or change {}", listed, Setting(key))
