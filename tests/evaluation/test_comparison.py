import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from charlm.errors import Stopped, UsageError
from charlm.evaluation import comparison
from charlm.evaluation.score import Score
from charlm.runs import RunFolder


@pytest.fixture
def run(trained):
    return comparison.open_run(RunFolder(trained), "val", "cpu")


def test_an_open_run_has_shapes_and_no_weights(run):
    assert all(weight.is_meta for weight in run.saved.model.parameters())
    assert (len(run.part), run.source, run.scores) == (258, "text.txt", {})


def test_a_run_is_scored_by_the_protocols_it_was_cut_by(run):
    cuts = comparison.cut([run], ["windows", "sliding"], 8)
    counted = []

    comparison.score([run], "cpu", counted.append)

    assert list(cuts) == list(run.scores) == ["windows", "sliding"]
    assert sum(counted) == 2 * 257
    assert run.loss("windows") != run.loss("sliding")
    assert run.loss("stream") == float("inf")
    assert all(weight.is_meta for weight in run.saved.model.parameters())


def test_what_no_run_can_do_is_refused(run):
    with pytest.raises(UsageError, match="protocol='stream': none of these runs supports it"):
        comparison.cut([run], ["windows", "stream"], 8)
    with pytest.raises(UsageError, match=r"tiny: block_size=9: this model sees at most 8"):
        comparison.cut([run], ["windows"], 9)


def test_scoring_stops_when_asked_to(run):
    comparison.cut([run], ["windows"], 8)

    with pytest.raises(Stopped):
        comparison.score([run], "cpu", should_stop=lambda: True)


def test_runs_that_differ_in_their_seed_are_a_group(trained):
    shutil.copytree(trained, "runs/again")
    again = RunFolder(Path("runs/again"))
    again.config_path.write_text(again.config_path.read_text().replace("seed: 1337", "seed: 7"))
    runs = [comparison.open_run(one, "val", "cpu") for one in (RunFolder(trained), again)]
    for run, loss in zip(runs, (2.0, 1.0), strict=True):
        run.scores["windows"] = Score(257, loss)
    other = replace(runs[0], text=("another",), scores={"windows": Score(9, 3.0)})

    ((first,), (second,)) = comparison.ordered([*runs, other], "windows")

    assert [run.loss("windows") for run in first] == [1.0, 2.0]
    assert second == [other]
    assert comparison.spread(first, "windows") == {"mean": 1.5, "sd": pytest.approx(0.5**0.5)}
    assert comparison.spread(first, "stream") is None
    assert len(comparison.one_per_seed([*first, replace(first[0])])) == 2
