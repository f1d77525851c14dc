"""Where the parts of a text, or of a list of records, begin and end: train, then val, then test."""

from collections.abc import Mapping
from fractions import Fraction

from charlm.config import DataConfig
from charlm.errors import DataError, Phrase, Setting, Words, number_of


def split_bounds(size: int, data: DataConfig) -> dict[str, tuple[int, int]]:
    """Split [0, size) by position into train, then val, then test."""
    # Exact fractions: in floats 1 - 0.9 is less than 0.1.
    val_share, test_share = Fraction(str(data.val_fraction)), Fraction(str(data.test_fraction))
    train, val = int(size * (1 - val_share - test_share)), size - int(size * test_share)
    if not val_share:
        train = val
    return {"train": (0, train), "val": (train, val), "test": (val, size)}


def record_bounds(count: int, data: DataConfig) -> dict[str, tuple[int, int]]:
    """Split `count` records into train, then val, then test; no part that is wanted stays empty.

    Raises DataError if there are too few.
    """
    val, test = (float(share > 0) for share in (data.val_fraction, data.test_fraction))
    needed = 1 + int(val) + int(test)
    if count < needed:
        what = f"{number_of(count, 'record')}, and its parts need {needed}"
        mend: Words = "use a longer list"
        if val and count == needed - 1:
            mend = Phrase(f"{mend}, or set {{}}", Setting("data.val_fraction", 0))
        raise DataError(data.source, what, mend)
    tests = max(int(test), int(count * Fraction(str(data.test_fraction))))
    vals = max(int(val), int(count * Fraction(str(data.val_fraction))))
    train = max(1, count - vals - tests)
    tests = min(tests, count - train - int(val))
    return {"train": (0, train), "val": (train, count - tests), "test": (count - tests, count)}


def refuse_empty(bounds: Mapping[str, tuple[int, int]], data: DataConfig, count: int) -> None:
    """Raise DataError if a part that is wanted has no records, since equal ones are in one part."""
    for name, (first, last) in bounds.items():
        if first == last and (name == "train" or getattr(data, f"{name}_fraction")):
            what = (
                f"so many of its {count:,} records are equal that none is left for the {name} part"
            )
            raise DataError(data.source, what, "use data.unique=true, or another list")


def check_parts(size: int, data: DataConfig) -> None:
    """Raise DataError for a text with a part of less than a symbol to read and one to predict."""
    for name, (start, stop) in split_bounds(size, data).items():
        wanted, length = name == "train" or getattr(data, f"{name}_fraction") > 0, stop - start
        if wanted and length < 2:
            whole = number_of(size, "character")
            what = f"too short: of its {whole} {length} make the {name} part, which needs 2"
            raise DataError(data.source, what, _or_other_shares("use a longer text", size, data, 2))


def check_scored(size: int, bounds: Mapping[str, tuple[int, int]], data: DataConfig) -> None:
    """Raise DataError if there is too little to count, or to score."""
    for name in ("train", "val"):
        length = bounds[name][1] - bounds[name][0]
        if length < 2:
            whole = number_of(size, "character" if data.unit == "chars" else "byte")
            what = f"its {name} part has {length} of {whole} and needs 2"
            mend = Phrase("use a longer text or another {}", Setting("data.val_fraction"))
            raise DataError(data.source, what, mend)


def check_lengths(size: int, data: DataConfig, block_size: int) -> None:
    """Raise DataError for a text with a part too short for one window and the next character."""
    for name, (start, stop) in split_bounds(size, data).items():
        wanted, length = name == "train" or getattr(data, f"{name}_fraction") > 0, stop - start
        if wanted and length <= block_size:
            has = number_of(length, "character")
            what = f"the {name} part has {has} and needs {block_size + 1}"
            mend = f"lower model.block_size below {max(length, 1)}, use a longer text"
            raise DataError(data.source, what, _or_other_shares(mend, size, data, block_size + 1))


def _or_other_shares(mend: str, size: int, data: DataConfig, least: int) -> Words:
    """Add to an advice the share of a part that makes all of them long enough, if there is one."""
    for name in ("val_fraction", "test_fraction"):
        for percent in range(1, 100) if getattr(data, name) else ():
            other = data.model_copy(update={name: percent / 100})
            parts = split_bounds(size, other).items()
            wanted = [
                stop - start for key, (start, stop) in parts if key != "test" or other.test_fraction
            ]
            if min(wanted) >= least:
                return Phrase(f"{mend}, or set {{}}", Setting(f"data.{name}", percent / 100))
    return mend
