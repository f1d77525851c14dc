"""What a model writes, and which of it was recited from the training part."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from charlm import sampling
from charlm.config import changed
from charlm.evaluation.given_texts import texts_of_part
from charlm.evaluation.known import Progress
from charlm.evaluation.novelty import Novelty, measure
from charlm.reporting.opened import Opened
from charlm.text.raw import as_bytes

TEMPERATURES = (0.5, 0.8, 1.0)
CHARS = 400  # of a sample
RECORDS = 12  # samples at a temperature, if they are records
HELD_OUT = 20  # texts of the validation part that are measured alike


@dataclass(frozen=True)
class Sample:
    """One text: what comes before the longest span that was copied, the span, and the rest."""

    before: str
    copied: str
    after: str
    length: int  # of the span, in symbols
    known: bool = False  # whether it is a record of the training part, as a whole


@dataclass(frozen=True)
class Written:
    """The samples at one temperature."""

    temperature: float
    samples: list[Sample]

    @property
    def longest(self) -> int:
        """The length of the longest span that was copied, in symbols."""
        return max((one.length for one in self.samples), default=0)

    @property
    def known(self) -> int:
        """How many of the samples are records of the training part."""
        return sum(one.known for one in self.samples)


@dataclass(frozen=True)
class Writing:
    """Samples at several temperatures, beside what held-out texts share with the training part."""

    written: list[Written]
    prompt: str  # what was continued
    seed: int
    held_spans: list[int] = field(default_factory=list)  # the longest span of each, in order
    held_known: int = 0  # how many held-out records stand in the training part, too
    held: int = 0  # how many held-out texts there are


def writing(
    run: Opened,
    seed: int = 0,
    progress: Progress = lambda step, done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Writing:
    """Draw samples, and look for them in the training part.

    `progress` is called often, also to stop the work by an exception.
    """
    texts = {t: [*_drawn(run, t, seed, progress, should_stop)] for t in TEMPERATURES}
    held = [] if run.val is None else texts_of_part(run.val, run.tokenizer, HELD_OUT, CHARS).texts
    sets = [some for some in [*texts.values(), held] if some]
    measured = iter(measure(sets, run.train, run.tokenizer, progress).sets if sets else ())
    unit = run.tokenizer.unit
    written = [
        Written(t, samples_of(next(measured), unit) if some else []) for t, some in texts.items()
    ]
    prompt = "" if run.of_records else run.config.sample.prompt
    if not held:
        return Writing(written, prompt, seed)
    found = samples_of(next(measured), unit)
    spans = sorted(one.length for one in found)
    return Writing(written, prompt, seed, spans, sum(one.known for one in found), len(found))


def _drawn(
    run: Opened,
    temperature: float,
    seed: int,
    progress: Progress,
    should_stop: Callable[[], bool],
) -> Iterator[str]:
    """Yield samples at a temperature: one text, or some whole records."""
    keys = [f"sample.temperature={temperature}", f"sample.max_new_chars={CHARS}"]
    config = changed(run.config, keys).sample
    prompt = "" if run.of_records else config.prompt
    ids = sampling.encode_prompt(run.tokenizer, prompt, where=sampling.CONFIGURED)
    task = sampling.task_of(run.tokenizer, config, (), None, "float32")
    count = RECORDS if run.of_records else 1
    drawing = sampling.Drawing(run.model, run.tokenizer, ids, task, should_stop, count)
    first = sampling.choose_seed(seed)
    for group in drawing.groups(range(first, first + count)):
        for text in drawing.draw(group):
            if text.ended == "boundary" or not run.of_records:
                yield text.text()
        progress("writing", len(group), count * len(TEMPERATURES))


def samples_of(measured: Novelty, unit: str) -> list[Sample]:
    """Return texts that were measured with their longest copied spans; short records have none."""
    spans = dict(zip(measured.long, _spans(measured), strict=True))
    known = [False] * len(measured.texts) if measured.found is None else measured.found.tolist()
    return [
        Sample(*parts_of(text, *spans.get(text, (0, 0)), unit), spans.get(text, (0, 0))[1], own)
        for text, own in zip(measured.texts, known, strict=True)
    ]


def _spans(measured: Novelty) -> Sequence[tuple[int, int]]:
    """Return where the longest copied span of each long text begins, and its length."""
    if measured.copied is None:
        return []
    return list(zip(measured.copied.starts.tolist(), measured.copied.lengths.tolist(), strict=True))


def parts_of(text: str, first: int, length: int, unit: str) -> tuple[str, str, str]:
    """Cut a text before and after a span of symbols: characters, or bytes of a model of bytes."""
    if unit != "bytes":
        return text[:first], text[first : first + length], text[first + length :]
    data = as_bytes(text)
    pieces = data[:first], data[first : first + length], data[first + length :]
    before, span, after = (piece.decode("utf-8", "surrogateescape") for piece in pieces)
    return before, span, after
