"""Numbers as a reader wants them: few digits, and a unit of about their size."""

Units = tuple[tuple[float, str], ...]  # the largest first

TIMES: Units = ((86_400.0, "d"), (3600.0, "h"), (1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
BYTES: Units = (
    (2.0**50, "PiB"),
    (2.0**40, "TiB"),
    (2.0**30, "GiB"),
    (2.0**20, "MiB"),
    (1024.0, "KiB"),
    (1.0, "B"),
)
DECIMAL_BYTES: Units = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"))
COUNTS: Units = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def written(number: float, units: Units, digits: int = 3) -> str:
    """Write a number in the largest unit that it reaches: 69.1 ms.

    digits: At most so many, but all of those before the point.
    """
    size, unit = next((one for one in units if number >= one[0]), units[-1])
    value = number / size
    shown = f"{value:.{digits}g}" if value < 10**digits - 0.5 else f"{value:,.0f}"
    return f"{shown} {unit}".rstrip()
