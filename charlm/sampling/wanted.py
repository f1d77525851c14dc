"""Draw texts until enough of them are wanted: records that are new, or not drawn before."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from charlm.evaluation.known import Known
from charlm.sampling.draw import Drawing, Text

MOST_DRAWS = 100  # for each wanted text


@dataclass
class Wanted:
    """Which texts are wanted, and how many were not; kept over several prompts."""

    known: Known | None = None  # only whole records are wanted, and none of these
    unique: bool = False  # each only once
    seen: set[str] = field(default_factory=set)
    recited: int = 0  # were among the known ones
    unfinished: int = 0  # were cut off before the end of their record, or are empty
    repeated: int = 0
    drawn: int = 0

    def takes(self, begin: str, text: Text) -> bool:
        """Tell whether a text after its beginning is wanted, and count it."""
        whole = begin + text.text()
        self.drawn += 1
        if self.known is not None:
            if text.ended != "boundary" or not whole:
                self.unfinished += 1
                return False
            if self.known.holds([whole])[0]:
                self.recited += 1
                return False
        if self.unique:
            if whole in self.seen:
                self.repeated += 1
                return False
            self.seen.add(whole)
        return True

    def __str__(self) -> str:
        """Say how many texts were not wanted, and why."""
        reasons = {
            "in the training part": self.recited,
            "repeated": self.repeated,
            "cut off": self.unfinished,
        }
        found = [f"{count:,} {reason}" for reason, count in reasons.items() if count]
        return f"{self.drawn:,} drawn" + (f": {', '.join(found)}" if found else "")


def draw_wanted(
    drawing: Drawing, seed: int, number: int, wanted: Wanted, best_of: int = 1
) -> Iterator[Text]:
    """Yield `number` wanted texts, from `seed` on in the order of their seeds.

    There are fewer if `MOST_DRAWS` for each do not suffice, or on request to stop. Greedy settings can
    give one text only, so it is drawn once. Texts are drawn in groups of the size that the share which
    was wanted so far calls for. Each is the best of `best_of`.
    """
    found = drawn = 0
    most = 1 if drawing.task.settings.greedy else number * MOST_DRAWS
    while found < number and drawn < most and not drawing.should_stop():
        many = (number - found) * (drawn + 1) // (found + 1)
        many = min(many, most - drawn, drawing.at_once if best_of == 1 else 1)
        first = seed + drawn * best_of
        if best_of == 1:
            texts = drawing.draw(range(first, first + many))
        else:
            texts = [drawing.best(range(first, first + best_of))]
        for text in texts[:1] if drawing.should_stop() else texts:
            drawn += 1
            if wanted.takes(drawing.begun, text):
                found += 1
                yield text
            if found == number:
                return
