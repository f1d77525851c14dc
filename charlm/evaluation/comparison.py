"""Runs side by side: the best checkpoint of each, scored by the same protocols.

Only one model is in memory at a time, so any number of runs can be compared.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev

from charlm.errors import Setting, UsageError
from charlm.evaluation import protocols
from charlm.evaluation.given import open_part
from charlm.evaluation.protocols import Cut, Name
from charlm.evaluation.score import Score
from charlm.evaluation.scoring import score_text, utf8_lengths
from charlm.models import LanguageModel
from charlm.runs import RunFolder
from charlm.runs.checkpoints import Checkpoint
from charlm.runs.load import SavedModel, load_model
from charlm.runs.state import read_state
from charlm.text.tokens import Split


@dataclass
class ComparedRun:
    """One run, at its best checkpoint.

    `text` must be equal for losses to be comparable: the text's SHA-256, its unit, the vocabulary
    size, and where the part begins and ends.
    """

    saved: SavedModel  # has weights only while it is being scored
    part: Split  # the text to score
    text: tuple[object, ...]
    source: str  # the text's name
    seconds: float  # of training, up to the checkpoint
    cuts: dict[Name, Cut] = field(default_factory=dict)
    scores: dict[Name, Score] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The path of the run."""
        return str(self.saved.run.path)

    def loss(self, protocol: Name) -> float:
        """Return the loss by a protocol, infinite if the model does not support it."""
        return self.scores[protocol].loss_nats if protocol in self.scores else float("inf")

    def key_without_seed(self) -> str:
        """Return a key that is equal for runs that differ only in their seed."""
        config = self.saved.config.model_dump()
        config["run"] |= {"seed": None, "out": None}
        return repr((self.text, config))


def open_run(run: RunFolder, split: str, device: str) -> ComparedRun:
    """Load a run to compare and drop its weights, keeping their shapes.

    Raises CheckpointError if it has no sound checkpoint, and DataError if it has no such part.
    """
    saved, seconds = _load_best(run, device)
    part, facts = open_part(saved.run, split)
    text = (facts["source_sha256"], facts["unit"], facts["vocab_size"], part.start, part.stop)
    saved.model.to("meta")
    return ComparedRun(saved, part, text, str(facts["source"]), seconds)


def _load_best(run: RunFolder, device: str) -> tuple[SavedModel, float]:
    """Return the best model and its training time, even if training prunes it meanwhile."""

    def load(best: Checkpoint) -> tuple[SavedModel, float]:
        return load_model(run, str(best.step), device), read_state(best.path, best.step).seconds

    return run.checkpoints.use("best", load)


def common_length(models: Sequence[LanguageModel]) -> int:
    """Return the longest window that all models support."""
    limited = [model.block_size for model in models if not model.any_length]
    return min(limited or [max(model.block_size for model in models)])


def cut(runs: Sequence[ComparedRun], chosen: Sequence[Name], length: int) -> dict[Name, Cut]:
    """Choose the protocols of each run, with windows of the same length; return one of each.

    Cuts of `stream` may differ between runs, since it has no window. Raises UsageError if the
    windows are too long for a run, or no run supports a protocol.
    """
    for run in runs:
        model = run.saved.model
        try:
            run.cuts = {
                name: protocols.choose(model, name, None if name == "stream" else length)
                for name in chosen
                if name != "stream" or model.any_length
            }
        except UsageError as error:
            raise error.within(run.name) from None
    shared = {name: run.cuts[name] for run in reversed(runs) for name in run.cuts}
    for name in chosen:
        if name not in shared:
            mend = "use windows, or sliding for more context"
            raise UsageError(Setting("protocol", name), "none of these runs supports it", mend)
    return {name: shared[name] for name in chosen}


def score(
    runs: Sequence[ComparedRun],
    device: str,
    progress: Callable[[int], None] = lambda chars: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Score each run by each of its protocols, which `cut` chose; see `score_text`."""
    for run in filter(lambda run: run.cuts, runs):
        run.saved, run.seconds = _load_best(run.saved.run, device)  # there may be a newer best
        sizes = utf8_lengths(run.saved.tokenizer)
        for name, its_cut in run.cuts.items():
            run.scores[name] = score_text(
                run.saved.model,
                run.part,
                its_cut,
                byte_lengths=sizes,
                progress=progress,
                should_stop=should_stop,
            )
        run.saved.model.to("meta")  # before the next is loaded


def ordered(runs: Sequence[ComparedRun], by: Name) -> list[list[list[ComparedRun]]]:
    """Return, for each text, the groups of runs that differ only in their seed, best first."""
    texts: dict[tuple[object, ...], dict[str, list[ComparedRun]]] = {}
    for run in sorted(runs, key=lambda run: (run.loss(by), run.name)):
        texts.setdefault(run.text, {}).setdefault(run.key_without_seed(), []).append(run)
    return [
        sorted(groups.values(), key=lambda group: mean(run.loss(by) for run in group))
        for groups in texts.values()
    ]


def one_per_seed(group: Sequence[ComparedRun]) -> list[ComparedRun]:
    """Leave out repeated runs, which would make the standard deviation too small."""
    return list({run.saved.config.run.seed: run for run in reversed(group)}.values())


def spread(group: Sequence[ComparedRun], name: Name) -> dict[str, float] | None:
    """Return mean and sample standard deviation of a protocol's losses, in nats."""
    losses = [run.scores[name].loss_nats for run in group if name in run.scores]
    return {"mean": mean(losses), "sd": stdev(losses)} if losses else None
