"""Where the records of a part begin and end."""

import numpy as np
import numpy.typing as npt

from charlm.text.tokens import Ids, Split, first_at_least


class Borders:
    """The places of the boundaries of a part, counted from its start: (R + 1,) for R records.

    They are read from disk where they are used, unless the part is in memory or `held`.
    """

    def __init__(self, ids: Ids, held: bool = False) -> None:
        self._held: npt.NDArray[np.int64] | None = None
        if isinstance(ids, Split) and ids.borders is not None:
            self._disk, self._start = ids.borders, ids.start
            if held:
                self._held = self.read(0, len(self))
        else:
            self._held = np.flatnonzero(ids.read(0, len(ids)) == ids.boundary)

    def __len__(self) -> int:
        return len(self._disk if self._held is None else self._held)

    def read(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """Return `count` places from number `first` on."""
        if self._held is not None:
            return self._held[first : first + count]
        places: npt.NDArray[np.int64] = self._disk.read(first, count).astype(np.int64)
        return places - self._start

    def before(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the last boundary at or before each place."""
        if self._held is not None:
            return self._held[np.searchsorted(self._held, places, side="right") - 1]
        at = [first_at_least(self._disk, self._start + place + 1) - 1 for place in places.tolist()]
        return np.array([self.read(i, 1)[0] for i in at])
