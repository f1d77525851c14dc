"""A log of changes, so that what was counted for a while can be forgotten again."""

from typing import NamedTuple, no_type_check

from charlm.models.bit_tables import Array
from charlm.models.kernel import kernel

SLOTS, RUNS, HISTORY, FOLLOWERS, INDEX = range(5)  # tables that may change for a while only


class Undo(NamedTuple):
    """What stood where something was changed.

    Args:
        log: Which table, where in it, and what stood there, (L, 3) int64.
        changes: How many changes are logged; -1: none are, because all are for good. (1,) int64.
    """

    log: Array
    changes: Array


@kernel
@no_type_check
def note(undo: Undo, table: int, place: int, old: int) -> None:
    """Log what stands in a place that is about to change, unless changes are for good."""
    log, done = undo.log, undo.changes[0]
    if done >= 0:
        log[done, 0], log[done, 1], log[done, 2] = table, place, old
        undo.changes[0] = done + 1
