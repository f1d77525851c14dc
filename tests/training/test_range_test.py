import pytest

from charlm.config import load_config
from charlm.lifecycle.begin import create_run, prepare_text
from charlm.models import build_model
from charlm.runs.records import TrainRecord
from charlm.training import Job
from charlm.training.gradients import gradient_learner
from charlm.training.range_test import Tried, as_dict, climb, suggestion
from tests.training.conftest import ignore


@pytest.fixture
def learner(tiny, tmp_path):
    config = load_config("tiny.yaml", [])
    text = prepare_text(config, ignore, ignore)
    folder = tmp_path / "run"
    folder.mkdir()
    run = create_run(config, folder, text, ignore)
    model = build_model(config.model, run.tokenizer.vocab_size, config.run.seed)
    return gradient_learner(Job(run.config, run.run, run.corpus, run.tokenizer, model))


def with_losses(learner, *losses):
    """Let the learner find these losses, one at each update."""
    records = (TrainRecord(step=1, loss_nats=loss, seconds=0.0) for loss in losses)
    learner.update = lambda rate: next(records)


def test_rates_grow_by_the_same_factor_and_reach_the_optimizer(learner):
    used = []
    update = learner.update

    def noted(rate):
        record = update(rate)
        used.append(learner.optimizers["adamw"].param_groups[0]["lr"])
        return record

    learner.update = noted
    tried = list(climb(learner, 1e-4, 1e-2, 5))

    assert [one.rate for one in tried] == pytest.approx([1e-4, 10**-3.5, 1e-3, 10**-2.5, 1e-2])
    assert used == [one.rate for one in tried]


def test_the_smoothed_loss_is_a_weighted_mean_of_those_so_far(learner):
    with_losses(learner, 5.0, 3.0, 1.0)

    smooth = [one.smooth_nats for one in climb(learner, 1e-3, 1e-1, 3)]

    assert smooth == pytest.approx(
        [5.0, (0.9 * 5 + 3) / 1.9, (0.81 * 5 + 0.9 * 3 + 1) / (0.81 + 0.9 + 1)]
    )


def test_it_ends_when_the_loss_has_diverged(learner):
    with_losses(learner, 4.0, 2.0, 2.0, 100.0, 2.0)

    assert [one.loss_nats for one in climb(learner, 1e-3, 1e-1, 5)] == [4.0, 2.0, 2.0, 100.0]


def test_it_ends_when_the_loss_is_not_finite(learner):
    tried = list(climb(learner, 1.0, 1e30, 20))

    assert 1 <= len(tried) < 20
    assert tried[-1].smooth_nats < float("inf")


def test_it_ends_when_it_is_told_to(learner):
    assert len(list(climb(learner, 1e-3, 1e-1, 5, should_stop=lambda: True))) == 1


def test_the_suggestion_is_a_tenth_of_the_best_rate_to_one_digit():
    tried = [Tried(10.0**-k, 0.0, smooth) for k, smooth in ((3, 2.0), (1.2, 1.0), (0, 3.0))]

    assert suggestion(tried) == 6e-3
    assert as_dict(tried)["lowest_at"] == 10**-1.2
