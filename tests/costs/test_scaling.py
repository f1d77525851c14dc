"""What breaks first on many devices, beside closed forms, and the tables of docs/scale.md."""

from dataclasses import replace
from pathlib import Path

import pytest

from charlm.costs import scaling
from charlm.costs.scaling import critical_batch, lost_to_stops, saving_seconds, scale, tables

PAGE = Path(__file__).parents[2] / "docs" / "scale.md"


def test_the_page_has_the_tables_that_the_functions_compute():
    assert "\n".join(tables()) in PAGE.read_text(encoding="utf-8")


def test_the_page_names_the_assumptions():
    page = PAGE.read_text(encoding="utf-8")

    assert f"{critical_batch(scaling.LOSS) / 1e6:.1f} million characters" in page
    assert f"{scaling.HOURS_BETWEEN_STOPS:,.0f} hours" in page


def test_a_batch_of_the_critical_size_loses_half(work, gpu, monkeypatch):
    chars = 8 * work.batch_chars
    monkeypatch.setattr(scaling, "critical_batch", lambda _: chars)

    assert scale(work, gpu, 8).losses["batch"] == 0.5
    assert critical_batch(2.0) < critical_batch(1.0)  # a better model bears a larger batch


def test_what_computing_covers_is_not_lost(work, gpu):
    fast, slow = (replace(gpu, inside=rate) for rate in (1e15, 1e8))

    near, far = scale(work, fast, 8), scale(work, slow, 8)

    assert near.losses["bytes"] == pytest.approx(0, abs=1e-9)
    assert far.breaks == "bytes"
    shown = far.step.seconds - far.step.computing - far.step.updating
    both = far.losses["bytes"] + far.losses["messages"]
    assert both == pytest.approx(shown / far.step.seconds)


def test_one_device_that_talks_to_nobody_is_efficient(work, gpu):
    silent = replace(gpu, inside=1e18, between=1e18)

    assert scale(work, silent, 1).efficiency == pytest.approx(1)


def test_stops_cost_what_the_best_interval_between_saves_loses():
    mean, saving = 10_000.0, 8.0

    def lost(interval):
        return saving / interval + interval / 2 / mean + scaling.RESTART / mean

    best = min(map(lost, range(1, 10_000)))
    assert lost_to_stops(mean, saving) == pytest.approx(best, rel=1e-4)


def test_a_save_writes_weights_and_two_moments_while_all_others_ask(work):
    alone, many = saving_seconds(work, 1), saving_seconds(work, 10_001)

    assert alone == pytest.approx(12 * work.weights / 1e9, rel=0.01)
    assert many - alone == pytest.approx(10_000 * 2 * 50e-6)
