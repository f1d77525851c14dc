"""What breaks first when more and more devices train a model, each on a micro-batch of its own.

The batch then grows with the devices, and so does what is lost: to a batch that is larger than the
gradient is noisy, to bytes and messages between devices, and to failures and the checkpoints against
them. By arithmetic from published numbers; nothing here was measured.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import sqrt

from charlm.config import load_config
from charlm.costs.devices import gpu
from charlm.costs.estimate import Estimate, Machine, estimate, several
from charlm.costs.work import FLOAT, Work, work_of
from charlm.costs.written import DECIMAL_BYTES, TIMES, written

CHARS_A_TOKEN = 4  # of a vocabulary of about 50,000 tokens: assumed
LOSS = 1.0  # nats a character, late in training: assumed

# 419 unexpected stops in 54 days of 16,384 GPUs (Grattafiori et al. 2024, Llama 3, section 3.3.4).
HOURS_BETWEEN_STOPS = 54 * 24 * 16_384 / 419  # of one device
RESTART = 300.0  # seconds: assumed
WRITTEN = 1e9  # bytes of a checkpoint that the first process writes in a second: assumed
ASKED = 50e-6  # seconds in which the first process answers another that asks the store: assumed
REQUESTS = 2  # of each process for what the first does alone: to wait, and to read

TELLING = 0.1  # a smaller loss is none to speak of


@dataclass(frozen=True)
class Scale:
    """A model on so many devices.

    Attributes:
        step: By the strategy that takes the least time of those that fit.
        exact: By `ddp` in the order of the tree.
        efficiency: Characters a second of a device, over those of one that trains alone.
        stops_a_day: Failures of any device.
        losses: Shares of the work that are lost, by cause.
    """

    step: Estimate
    exact: Estimate
    efficiency: float
    stops_a_day: float
    losses: dict[str, float]

    @property
    def breaks(self) -> str:
        """What loses the most, if that is worth a word."""
        cause = max(self.losses, key=lambda name: self.losses[name])
        return cause if self.losses[cause] >= TELLING else "nothing yet"


def scale(work: Work, machine: Machine, processes: int) -> Scale:
    """Return a model on so many devices; the windows of `work` are those of one device.

    Raises ValueError if it fits by no strategy.
    """
    micro = work.windows
    whole = replace(work, windows=micro * processes)
    found = [estimate(whole, machine, name, processes, micro) for name in several(work)]
    step = min((one for one in found if one.fits), key=lambda one: one.seconds)
    alone = estimate(work, machine, "none", 1, micro)
    (exact,) = (one for one in found if one.strategy == "ddp exact")
    talking = step.exchanging + step.waiting
    late = max(0.0, step.seconds - step.computing - step.updating)  # computing covers the rest
    shown = late / talking / step.seconds if talking else 0.0
    mean = 3600 * HOURS_BETWEEN_STOPS / processes
    batch = whole.batch_chars
    losses = {
        "batch": batch / (batch + critical_batch(LOSS)),
        "bytes": shown * step.exchanging,
        "messages": shown * step.waiting,
        "stops": lost_to_stops(mean, saving_seconds(work, processes)),
    }
    efficiency = step.chars_per_second / processes / alone.chars_per_second
    return Scale(step, exact, efficiency, 86_400 / mean, losses)


def critical_batch(loss: float) -> float:
    """Return the characters of a batch in which noise and gradient are about as large.

    With B characters, a loss is reached after 1 + B / B_crit times the fewest characters (McCandlish et
    al. 2018, "An empirical model of large-batch training", equation 2.11), so B / (B + B_crit) of them are lost. B_crit is 2e8
    tokens over L^(1 / 0.21), at a loss of L nats a token (Kaplan et al. 2020, equation 1.4).

    Args:
        loss: Nats a character.
    """
    return float(CHARS_A_TOKEN * 2e8 / (loss * CHARS_A_TOKEN) ** (1 / 0.21))


def saving_seconds(work: Work, processes: int) -> float:
    """Return how long a checkpoint takes: the first process writes while all others ask for its end."""
    return 3 * FLOAT * work.weights / WRITTEN + REQUESTS * ASKED * processes


def lost_to_stops(mean: float, saving: float) -> float:
    """Return the share of time that is lost to stops and to saving as often as is best.

    Saving each sqrt(2 d M) seconds loses sqrt(2 d / M), half of it by saving (Young 1974, "A first
    order approximation to the optimum checkpoint interval"), and each stop a restart.

    Args:
        mean: Seconds between stops, M.
        saving: Seconds of a checkpoint, d.
    """
    return min(1.0, sqrt(2 * saving / mean) + RESTART / mean)


BYTES = 256  # symbols of a model of bytes
CHARS_A_DEVICE = 8192  # in its micro-batch
COUNTS = (8, 64, 1024, 16_384)
LARGE = ("model.style=gpt2", "model.n_gram=1", "model.block_size=1024", "train.optimizer=adamw")
MODELS = {  # presets with changes
    "5 M (`gpt`)": ("gpt", ()),
    "11 M (`nanogpt-gpu`)": ("nanogpt-gpu", ()),
    "86 M (GPT-2 small)": (
        "gpt",
        (*LARGE, "model.n_layer=12", "model.n_head=12", "model.n_embd=768"),
    ),
    "1.2 B (GPT-3 XL)": (
        "gpt",
        (*LARGE, "model.n_layer=24", "model.n_head=16", "model.n_embd=2048"),
    ),
}


def tables(kind: str = "h100") -> list[str]:
    """Return the tables of docs/scale.md, as lines of Markdown: steps, and what is lost."""
    names = ("model", "devices", "batch", "best", "step", "efficiency", "sent", "held")
    costs = [*_heading((*names, "exact tree: step", "held"))]
    lost = [*_heading(("model", "devices", "batch", "bytes", "messages", "stops", "breaks first"))]
    for name, (preset, changes) in MODELS.items():
        config = load_config(preset, changes)
        windows = CHARS_A_DEVICE // config.model.block_size
        work = replace(work_of(config, BYTES), windows=windows)
        for count in COUNTS:
            found = scale(work, gpu(kind), count)
            step, exact = found.step, found.exact
            costs.append(
                _row(
                    name,
                    f"{count:,}",
                    f"{step.chars / 1e6:,.3g} M",
                    step.strategy,
                    written(step.seconds, TIMES, 2),  # more digits are not known
                    f"{100 * found.efficiency:.0f} %",
                    written(step.sent, DECIMAL_BYTES),
                    written(step.bytes_held, DECIMAL_BYTES),
                    written(exact.seconds, TIMES, 2),
                    written(exact.bytes_held, DECIMAL_BYTES) + ("" if exact.fits else ": too much"),
                )
            )
            shares = (f"{100 * share:.1f} %" for share in found.losses.values())
            lost.append(_row(name, f"{count:,}", *shares, found.breaks))
    return [*costs, "", *lost]


def _heading(names: tuple[str, ...]) -> Iterator[str]:
    yield _row(*names)
    yield "|---" * len(names) + "|"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
