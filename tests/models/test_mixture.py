import copy
import math

import pytest
import torch

from charlm.models import MixtureModel, NGramModel, build_model, next_token_loss
from charlm.models import mixture as mixing
from charlm.models.bigram import BigramModel
from charlm.models.counts import count_ngrams
from charlm.models.mixture import fit_weights
from charlm.models.smoothing import smooth
from charlm.text.tokens import IdArray
from tests.models.conftest import BLOCK, CONFIGS, VOCAB

KINDS = ("log-linear", "linear")


def mixture(vocab_size, count, combine, weights=None, temperature=1.0):
    """A mixture of this many experts, whose own logits are of no interest."""
    experts = {f"e{i}": BigramModel(vocab_size, 8) for i in range(count)}
    model = MixtureModel(vocab_size, 8, experts, combine)
    if weights is not None:
        model.weights.copy_(weights)
    model.temperature.fill_(temperature)
    return model


def join(logits, combine, weights, temperature):
    return mixture(logits.shape[-1], len(logits), combine, weights, temperature).join(logits)


def loss_of(logits, targets, combine, weights, temperature=1.0):
    joined = join(logits, combine, torch.as_tensor(weights), float(temperature))
    return next_token_loss(joined[None].double(), targets[None]).item()


def least(function, at, step=0.25):
    """The least of a smooth function by walking downhill along the axes, with ever smaller steps."""
    value = function(at)
    while step > 1e-5:
        tries = [at + step * sign * axis for axis in torch.eye(len(at)) for sign in (1, -1)]
        best = min(tries, key=function)
        if function(best) < value:
            at, value = best, function(best)
        else:
            step /= 2
    return value


@pytest.fixture
def predictions(generator):
    """Three experts that know something of 300 characters, each its own part, and one of them
    sure of itself."""
    truth = torch.randn(300, 5, generator=generator)
    logits = truth + torch.tensor([0.5, 1.0, 2.0])[:, None, None] * torch.randn(
        3, 300, 5, generator=generator
    )
    targets = torch.multinomial(truth.softmax(-1), 1, generator=generator)[:, 0]
    return logits, targets


def test_log_linear_multiplies_powers():
    p, q = [0.7, 0.2, 0.1], [0.2, 0.2, 0.6]
    powers = [math.sqrt(a**0.25 * b**0.75) for a, b in zip(p, q, strict=True)]
    expected = torch.tensor(powers) / sum(powers)

    # What is added to all logits of an expert means nothing.
    logits = torch.tensor([p, q]).log() + torch.tensor([[3.0], [-1.0]])
    joined = join(logits, "log-linear", torch.tensor([0.25, 0.75]), 2.0)

    torch.testing.assert_close(joined.softmax(-1), expected)


def test_linear_adds_shares():
    p, q = [0.7, 0.2, 0.1], [0.2, 0.2, 0.6]
    powers = [(0.25 * a + 0.75 * b) ** 0.5 for a, b in zip(p, q, strict=True)]
    expected = torch.tensor(powers) / sum(powers)

    logits = torch.tensor([p, q]).log() + torch.tensor([[3.0], [-1.0]])
    joined = join(logits, "linear", torch.tensor([0.25, 0.75]), 2.0)

    torch.testing.assert_close(joined.softmax(-1), expected)


@pytest.mark.parametrize("combine", KINDS)
def test_what_experts_call_impossible_stays_a_number(combine):
    nothing = torch.tensor([[0.0, -300.0, -torch.inf], [0.0, -200.0, -torch.inf]])

    sharp = join(nothing, combine, torch.tensor([0.5, 0.5]), 1.0)
    one_sided = join(nothing, combine, torch.tensor([1.0, 0.0]), 1.0)

    assert sharp.isfinite().all()
    assert one_sided.isfinite().all()
    # Far below what a float32 can hold as a probability, it is still known how far.
    expected = {"log-linear": -250, "linear": -200 + math.log(0.5)}[combine]
    assert sharp[1].item() == pytest.approx(expected)
    assert one_sided[1].item() == pytest.approx(-300)


def test_the_fit_of_a_product_is_the_least_that_a_search_finds(predictions):
    logits, targets = predictions

    weights, temperature = fit_weights(logits, targets, "log-linear")

    found = least(lambda powers: loss_of(*predictions, "log-linear", powers), torch.ones(3) / 3)
    assert weights.sum().item() == pytest.approx(1)
    assert loss_of(*predictions, "log-linear", weights, temperature) == pytest.approx(
        found, abs=1e-5
    )
    equal = loss_of(*predictions, "log-linear", torch.ones(3) / 3)
    assert found < equal - 0.01


def test_the_fit_of_a_mean_is_the_least_that_a_search_finds(predictions):
    logits, targets = predictions

    weights, temperature = fit_weights(logits, targets, "linear")

    def of_shares(free):
        shares = free.softmax(-1)
        return loss_of(*predictions, "linear", shares)

    found = least(of_shares, torch.zeros(3))
    assert weights.sum().item() == pytest.approx(1)
    assert loss_of(*predictions, "linear", weights) == pytest.approx(found, abs=1e-5)
    sharper = least(lambda t: loss_of(*predictions, "linear", weights, t), torch.ones(1))
    assert loss_of(*predictions, "linear", weights, temperature) == pytest.approx(sharper, abs=1e-5)
    assert sharper < found - 1e-3


def test_an_expert_that_says_nothing_new_may_weigh_less_than_nothing(generator):
    """The product of powers takes back what two experts have both counted."""
    common, own = torch.randn(2, 500, 4, generator=generator)
    targets = torch.multinomial((common + own).softmax(-1), 1, generator=generator)[:, 0]

    weights, _ = fit_weights(torch.stack([2 * common + own, common]), targets, "log-linear")

    assert weights[1] < -0.1


@pytest.mark.parametrize("combine", KINDS)
def test_experts_that_are_one_share_alike(combine, predictions):
    logits, targets = predictions

    weights, temperature = fit_weights(logits[[0, 0, 0]], targets, combine)
    alone, the_same = fit_weights(logits[:1], targets, combine)

    torch.testing.assert_close(weights, torch.full((3,), 1 / 3))
    assert alone.item() == 1
    torch.testing.assert_close(temperature, the_same, atol=1e-3, rtol=0)


def one_hot(targets, vocab_size, height):
    return height * torch.nn.functional.one_hot(targets, vocab_size).float()


def draws(vocab_size, count, *heights):
    """Targets, and experts that give each this much above (or below) everything else."""
    draw = torch.Generator().manual_seed(vocab_size + count)
    targets = torch.randint(vocab_size, (count,), generator=draw)
    return torch.stack([one_hot(targets, vocab_size, h) for h in heights]), targets


def noise(count, vocab_size, scale, seed=5):
    return scale * torch.randn(1, count, vocab_size, generator=torch.Generator().manual_seed(seed))


def sure_and_half_wrong():
    logits, targets = draws(4, 60, 1e4, 1.0)
    logits[0, ::2] = logits[0, ::2].roll(1, dims=-1)
    return logits, targets


def impossible_targets():
    logits, targets = draws(4, 60, 2.0, 1.0)
    logits[:, 3, targets[3]] = -torch.inf
    return logits, targets


HARD = {
    "perfect": lambda: draws(3, 50, 1e4),
    "perfect and not": lambda: draws(3, 50, 1e4, 0.0),
    "nearly perfect": lambda: draws(3, 50, 12.0, 11.0),
    "always wrong": lambda: draws(3, 50, -1e4),
    "misleading": lambda: draws(3, 50, -2.0, -1.0),
    "nothing in all": lambda: draws(2, 50, -1.0, 1.0),
    "sure and half wrong": sure_and_half_wrong,
    "sure of noise": lambda: (
        torch.cat([noise(200, 5, 1e3), noise(200, 5, 1.0, 6)]),
        torch.arange(200) % 5,
    ),
    "hardly anything said": lambda: tuple(
        x / 1e4 if x.is_floating_point() else x for x in draws(4, 60, 1.0, 0.5)
    ),
    "impossible targets": impossible_targets,
    "enormous logits": lambda: draws(3, 50, 1e30, 1.0),
    "two symbols": lambda: draws(2, 40, 3.0, 1.0),
    "one symbol": lambda: draws(1, 40, 3.0, 1.0),
    "one character": lambda: draws(5, 1, 1.0, -1.0, 0.0),
    "more experts than text": lambda: draws(5, 2, *(h / 3 for h in range(-4, 8))),
}


@pytest.mark.parametrize("combine", KINDS)
@pytest.mark.parametrize("case", HARD)
def test_however_bad_the_experts_the_fit_is_finite_and_no_worse_than_any(case, combine):
    logits, targets = HARD[case]()

    weights, temperature = fit_weights(logits, targets, combine)

    assert weights.isfinite().all()
    assert temperature.isfinite()
    assert temperature > 0
    joined = loss_of(logits, targets, combine, weights, temperature)
    assert math.isfinite(joined)
    alone = [loss_of(one[None], targets, combine, [1.0]) for one in logits]
    guessing = math.log(logits.shape[-1])
    # The pull to equal weights costs a little, where a perfect expert would go on for ever.
    assert joined <= min(*alone, guessing) + 3e-3


def test_a_perfect_expert_is_believed_as_far_as_the_pull_to_equal_weights_lets_it():
    logits, targets = draws(3, 50, 3.0)

    _, temperature = fit_weights(logits, targets, "log-linear")

    # The loss is ln(1 + 2 e^-3P) for the power P, ever smaller; its slope meets that of the pull.
    power = 1 / temperature.item()
    wrong = 2 * math.exp(-3 * power)
    assert 3 * wrong / (1 + wrong) == pytest.approx(mixing.RIDGE * (power - 1), rel=1e-3)


@pytest.mark.parametrize("combine", KINDS)
def test_the_fit_does_not_depend_on_how_much_is_worked_on_at_a_time(
    combine, predictions, monkeypatch
):
    whole = fit_weights(*predictions, combine)
    monkeypatch.setattr(mixing, "CHUNK", 64)
    parts = fit_weights(*predictions, combine)

    torch.testing.assert_close(parts, whole)


def test_a_stop_is_obeyed_within_the_fit(predictions, monkeypatch):
    class StopHere(Exception):
        pass

    def stop():
        raise StopHere

    with pytest.raises(StopHere):
        fit_weights(*predictions, "log-linear", stop)
    monkeypatch.setattr(mixing, "_fit_powers", None)  # what comes after the weights of a mean
    with pytest.raises(StopHere):
        fit_weights(*predictions, "linear", stop)


@pytest.mark.parametrize("block", [1, 2, 5, 8])
def test_each_position_past_the_block_has_half_a_block_behind_it(block, generator):
    config = CONFIGS["gpt2"].model_copy(update={"block_size": block})
    model = build_model(config, VOCAB, seed=1).eval()
    half = max(1, block // 2)
    for length in (1, block, block + 1, 3 * block + 2):
        idx = torch.randint(VOCAB, (2, length), generator=generator)

        logits = model.read(idx)

        for at in range(length):
            first = 0 if at < block else (at - block) // half * half + half
            expected = model(idx[:, first : at + 1])[:, -1]
            torch.testing.assert_close(logits[:, at], expected)
            assert at + 1 - first >= min(at + 1, block - half + 1)


@pytest.mark.parametrize("at", [3, 8, 13, 20])
def test_no_prediction_past_the_block_sees_what_comes_later(at, generator):
    model = build_model(CONFIGS["modern"], VOCAB, seed=1).eval()
    idx = torch.randint(VOCAB, (1, 3 * BLOCK), generator=generator)
    changed = idx.clone()
    changed[:, at:] = (changed[:, at:] + 1) % VOCAB

    assert torch.equal(model.read(idx)[:, :at], model.read(changed)[:, :at])


@pytest.fixture
def joined(generator):
    """A trigram and two GPTs of different blocks, with weights."""
    counts = NGramModel(VOCAB, BLOCK, 3)
    text = torch.randint(VOCAB, (3000,), generator=generator).numpy()
    counts.set_tables(smooth(count_ngrams(IdArray(text), VOCAB, 3), "kneser-ney"))
    short = build_model(CONFIGS["modern"].model_copy(update={"block_size": 4}), VOCAB, seed=2)
    long = build_model(CONFIGS["gpt2"].model_copy(update={"block_size": 12}), VOCAB, seed=3)
    with torch.no_grad():
        for parameter in [*short.parameters(), *long.parameters()]:
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    model = MixtureModel(VOCAB, 16, {"counts": counts, "short": short, "long": long})
    model.weights.copy_(torch.tensor([0.7, -0.2, 0.5]))
    model.temperature.fill_(0.9)
    return model.eval()


def test_stepping_gives_the_same_logits_within_the_block_of_every_expert(joined, generator):
    idx = torch.randint(VOCAB, (2, 4), generator=generator)
    state = joined.start(2)
    for at in range(4):
        logits, state = joined.step(idx[:, at : at + 1], state)
        torch.testing.assert_close(logits, joined(idx[:, : at + 1])[:, -1])


def test_stepping_goes_on_past_the_block_of_every_expert(joined, generator):
    idx = torch.randint(VOCAB, (2, 30), generator=generator)

    logits, _ = joined.step(idx[:, 20:], joined.step(idx[:, :20], joined.start(2))[1])

    ends = [expert.read(idx)[:, -1] for expert in joined.experts.values()]
    torch.testing.assert_close(logits, joined.join(ends))
    assert joined.memory == 12


def test_an_expert_may_have_any_name():
    """Of those that a configuration allows; PyTorch's own containers refuse some."""
    names = ["train", "keys", "half", "forward", "weights", "experts", "a-b"]
    model = MixtureModel(VOCAB, 8, {name: BigramModel(VOCAB, 8) for name in names})

    assert sum(1 for _ in model.parameters()) == len(names)
    assert {"experts.train.table.weight", "experts.a-b.table.weight"} <= model.state_dict().keys()


def test_its_tensors_make_it_again(joined):
    tensors = {name: tensor.clone() for name, tensor in joined.state_dict().items()}
    experts = {
        name: build_model(CONFIGS[kind].model_copy(update={"block_size": block}), VOCAB, seed=9)
        for name, kind, block in (
            ("counts", "ngram", 8),
            ("short", "modern", 4),
            ("long", "gpt2", 12),
        )
    }
    other = MixtureModel(VOCAB, 16, experts).eval()

    other.load_state_dict(tensors)

    idx = torch.arange(16)[None] % VOCAB
    assert torch.equal(other(idx), joined(idx))
    assert other.state_dict().keys() == tensors.keys()


@pytest.mark.parametrize(
    ("damage", "answer"),
    [
        (lambda t: t.pop("weights"), "weights is missing"),
        (lambda t: t.update(weights=torch.ones(2)), r"weights is \(2,\) .*expected \(3,\)"),
        (lambda t: t.update(weights=t["weights"].half()), "float16, expected .*float32"),
        (lambda t: t["weights"].fill_(math.nan), "weights holds 3 values that are NaN"),
        (lambda t: t["temperature"].fill_(0), "temperature, and weights .* cannot be"),
        (lambda t: t.pop("experts.counts.keys_2"), "experts.counts.keys_2 is missing"),
        (lambda t: t["experts.long.position_embedding.weight"].fill_(math.inf),
         "experts.long.position_embedding.weight holds 144 values that are NaN or infinite"),
        (lambda t: t.update({"experts.old.table": torch.ones(1)}),
         "experts.old.table belongs to another model"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_refused_by_name(joined, damage, answer):
    tensors = {name: tensor.clone() for name, tensor in joined.state_dict().items()}
    damage(tensors)

    with pytest.raises(ValueError, match=answer):
        joined.load_state_dict(tensors)


def test_shares_below_nothing_are_refused():
    model = mixture(3, 2, "linear")

    with pytest.raises(ValueError, match="cannot be"):
        model.load_state_dict(model.state_dict() | {"weights": torch.tensor([1.5, -0.5])})


def test_a_copy_has_experts_of_its_own():
    model = MixtureModel(5, 4, {"one": BigramModel(5, 4), "training": BigramModel(5, 4)})
    copied = copy.deepcopy(model)

    with torch.no_grad():
        for expert in copied.experts.values():
            expert.table.weight += torch.eye(5)

    idx = torch.tensor([[1, 2]])
    assert not torch.equal(copied(idx), model(idx))
    assert not copied.eval().experts["training"].training
    assert model.experts["training"].training
