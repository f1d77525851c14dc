import itertools

import pytest

from charlm.reporting.palette import GRID, INK, MUTED, PAGE, SERIES, TONES, config, recoloured


def luminance(colour):
    """Return the relative luminance of WCAG 2.2."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def mixed(colour, ground, opacity):
    pairs = ((int(c[i : i + 2], 16) for c in (colour, ground)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(opacity * a + (1 - opacity) * b):02x}" for a, b in pairs)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("tone", [INK, MUTED, *SERIES])
def test_text_in_each_colour_can_be_read_on_its_page(scheme, tone):
    assert contrast(getattr(tone, scheme), getattr(PAGE, scheme)) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_grid_is_subdued(scheme):
    assert 1.1 < contrast(getattr(GRID, scheme), getattr(PAGE, scheme)) < 1.6


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_can_be_read_on_the_darkest_ground_of_a_passage(scheme):
    from charlm.reporting.palette import HEAT
    from charlm.reporting.symbol_charts import DARKEST

    ground = mixed(getattr(HEAT, scheme), getattr(PAGE, scheme), DARKEST)

    assert contrast(getattr(INK, scheme), ground) >= 4.5


# Linear RGB to what eyes without one kind of cone see: Viénot, Brettel and Mollon 1999, "Digital video
# colourmaps for checking the legibility of displays by dichromats", for the first two.
BLINDNESS = {
    "protan": [[0.1124, 0.8876, 0.0], [0.1124, 0.8876, 0.0], [0.0040, -0.0040, 1.0]],
    "deutan": [[0.2928, 0.7072, 0.0], [0.2928, 0.7072, 0.0], [-0.0223, 0.0223, 1.0]],
}


def seen(colour, matrix):
    parts = [(int(colour[i : i + 2], 16) / 255) ** 2.2 for i in (1, 3, 5)]
    return [sum(m * p for m, p in zip(row, parts, strict=True)) for row in matrix]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("matrix", BLINDNESS.values(), ids=BLINDNESS.keys())
def test_the_first_two_series_differ_for_the_colour_blind(scheme, matrix):
    one, two = (seen(getattr(tone, scheme), matrix) for tone in SERIES[:2])

    # In the blue channel, which these eyes have, one has at least four times as much light.
    assert max(one[2], two[2]) > 4 * max(1e-3, min(one[2], two[2]))


def test_each_colour_stands_for_one_tone_only():
    for scheme in ("light", "dark"):
        colours = [getattr(tone, scheme) for tone in TONES]
        assert len(set(colours)) == len(colours)


def test_colours_are_replaced_wherever_they_are():
    spec = {"a": [{"color": INK.light}, "x"], "config": config(), "n": 1}

    dark = recoloured(spec)

    assert dark["a"] == [{"color": INK.dark}, "x"]
    assert dark["n"] == 1
    lights = {tone.light for tone in TONES}
    found = itertools.chain.from_iterable(_strings(dark))
    assert not lights & set(found)
    assert recoloured(spec, {INK.light: "var(--ink)"})["a"][0] == {"color": "var(--ink)"}


def _strings(value):
    if isinstance(value, dict):
        return itertools.chain.from_iterable(map(_strings, value.values()))
    if isinstance(value, list):
        return itertools.chain.from_iterable(map(_strings, value))
    return [[value]] if isinstance(value, str) else []
