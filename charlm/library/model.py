"""A trained model in Python: it writes texts, and tells how likely others are."""

import html
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from charlm.config import Config
from charlm.errors import UsageError
from charlm.evaluation.each import TextScore, TextScorer, score_records
from charlm.evaluation.predicting import evaluating
from charlm.library.heads import attention_of
from charlm.library.run import Run, open_run
from charlm.models import LanguageModel
from charlm.runs.load import SavedModel, load_model
from charlm.sampling.choose import log_softmax
from charlm.sampling.generate import Context
from charlm.sampling.request import PROMPT, encode_prompt
from charlm.sampling.write import draw, stream, text_of
from charlm.text import Tokenizer
from charlm.text.raw import as_bytes, as_unicode
from charlm.text.tokenizer import BOUNDARY, Unknown

Words = str | bytes  # bytes are UTF-8, or for a model of bytes any


@dataclass(frozen=True, eq=False)  # two arrays have no single truth
class Score:
    """How well a text was predicted, character by character.

    >>> score = charlm.load("runs/gpt").score("To be")
    >>> for char, nats in zip(score.text, score.nats, strict=True):
    ...     print(char, nats)

    `nats` has the surprisal of each character, in nats; of a run with records, also that of the end, which
    comes last. For a run of bytes, "characters" are bytes.
    """

    text: str
    nats: Float[np.ndarray, "N"] = field(repr=False)
    unknown: int = 0  # characters that are not in the model's alphabet
    unit: str = "chars"  # or bytes: what `nats` has a number for

    @property
    def total_nats(self) -> float:
        """The surprisal of the whole text, in nats: minus the logarithm of its probability."""
        return float(self.nats.sum())

    @property
    def total_bits(self) -> float:
        """The surprisal of the whole text, in bits."""
        return self.total_nats / math.log(2)

    @property
    def bits_per_char(self) -> float:
        """The mean of a character, in bits; 0 of an empty text."""
        return self.total_bits / len(self.nats) if len(self.nats) else 0.0

    @property
    def perplexity(self) -> float:
        """The number of equally likely characters that would be as hard to predict."""
        return 2**self.bits_per_char

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the text, each character coloured by its bits."""
        bits, at, marks = self.nats / math.log(2), 0, ""
        for char in self.text:
            size = len(as_bytes(char)) if self.unit == "bytes" else 1
            marks += _mark(char, bits[at : at + size].tolist())
            at += size
        one = "byte" if self.unit == "bytes" else "character"
        facts = f"{self.total_bits:.1f} bits, {self.bits_per_char:.3f} a {one}"
        return f'<div style="white-space: pre-wrap; font-family: monospace">{marks}</div>{facts}'


class Model:
    """A trained model.

    >>> model = charlm.load("runs/gpt")
    >>> print(model.generate("ROMEO:", max_new_chars=200, seed=1))
    >>> model.score("To be, or not to be").bits_per_char

    Many threads may use one model, if they do not train it.

    Attributes:
        module: The `nn.Module`: (B, T) ids to (B, T, V) logits.
        tokenizer: Turns text into ids and back.
        run: Where it is from.
        step: How many updates it has had.
    """

    def __init__(self, saved: SavedModel) -> None:
        self._saved = saved
        self.module: LanguageModel = saved.model
        self.tokenizer: Tokenizer = saved.tokenizer
        self.run = Run(saved.run)
        self.step = saved.step

    @property
    def config(self) -> Config:
        """The complete configuration of its run."""
        return self._saved.config

    @overload
    def generate(self, prompt: Words | None = ..., n: None = ..., **options: Any) -> str: ...
    @overload
    def generate(self, prompt: Words | None, n: int, **options: Any) -> list[str]: ...
    def generate(
        self, prompt: Words | None = None, n: int | None = None, **options: Any
    ) -> str | list[str]:
        """Return a text that continues a prompt, without it; or n texts, drawn together.

        Text i, from 0, is the one of `seed` + i. For the options see `stream`, which also says what is
        raised.

        >>> model = charlm.load("runs/gpt")
        >>> model.generate("To be", max_new_chars=20, seed=1)
        >>> first, second = model.generate("To be", 2, temperature=0.7)
        """
        if n is None:
            return "".join(self.stream(prompt, **options))
        if n < 1:
            raise UsageError("n", f"{n}: expected at least 1")
        return [as_unicode(text) for text in draw(self._saved, prompt, n, **options)]

    def stream(self, prompt: Words | None = None, **options: Any) -> Iterator[str]:
        """Yield the characters of a text as they are drawn, without the prompt.

        >>> for char in charlm.load("runs/gpt").stream("To be", stop="."):
        ...     print(char, end="", flush=True)

        Args:
            prompt: What to continue; None: the run's own prompt.
            options: `seed` (the same one gives the same text), `stop` (a text, or several, before which
                it ends), `allow` (only these characters), `unknown` (`error`, `skip` or `nearest`, for characters
                of the prompt that the model does not know), `weights` (`float32` or `int8`), `adapt` (learn from the prompt first);
                and any key of the section `sample` of a configuration: `max_new_chars`, `temperature`,
                `top_k`, `top_p`, `min_p`, `typical_p`, `repetition_penalty`.

        Raises:
            UsageError: An option is unknown or out of range.
            DataError: A character of the prompt is not in the alphabet.
            NonFiniteError: The model's logits are NaN or infinite.
        """
        return map(as_unicode, stream(self._saved, prompt, **options))

    def stream_bytes(self, prompt: Words | None = None, **options: Any) -> Iterator[bytes]:
        """Yield what `stream` does as bytes: UTF-8, or exactly what a model of bytes has drawn.

        >>> b"".join(charlm.load("runs/gpt").stream_bytes("To be", seed=1))
        """
        return map(as_bytes, stream(self._saved, prompt, **options))

    @overload
    def score(self, text: Words) -> Score: ...  # type: ignore[overload-overlap]
    @overload
    def score(self, text: Iterable[Words]) -> list[Score]: ...
    def score(self, text: Words | Iterable[Words]) -> Score | list[Score]:
        """Return how likely a text is, from its first character to its end; or how likely each of some is.

        >>> charlm.load("runs/gpt").score("To be").bits_per_char

        What is scored, and what unknown characters cost, says `charlm.evaluation.each`. For more texts than fit
        into memory, use `score_each`.

        Raises DataError if bytes are not UTF-8, or a text holds the symbol that marks borders of records.
        """
        if isinstance(text, str | bytes):
            return self.score([text])[0]
        texts = [self._text(one) for one in text]
        each = zip(texts, self._scorer.each(texts), strict=True)
        unit = self.tokenizer.unit
        return [Score(one, nats, unknown, unit) for one, (nats, unknown) in each]

    def score_each(
        self, texts: Iterable[Words], *, ahead: int | None = None
    ) -> Iterator[TextScore]:
        """Yield how likely each text is, in order; memory does not grow with their number.

        >>> for one in charlm.load("runs/gpt").score_each(["To be", "eb oT"]):
        ...     print(one.text, one.nats, one.bits_per_char)

        `ahead` is how many characters to read before the first is scored; None: some thousands.
        """
        if isinstance(texts, str | bytes):
            raise UsageError("texts", "a single text", "put it into a list, or use score")
        read = (self._text(one) for one in texts)
        return score_records(self.module, self.tokenizer, read, ahead=ahead)

    def next(self, prompt: Words = "", *, unknown: Unknown = "error") -> dict[str, float]:
        """Return the probability of each character that may come next, the likeliest first.

        >>> likely = charlm.load("runs/gpt").next("To b")
        >>> max(likely, key=likely.get)

        Of a run with records, the end of a record is "". Of a run of bytes, a byte that is no character
        is a lone surrogate, as `bytes.decode(errors="surrogateescape")` gives it. `unknown` says what is done about
        characters of the prompt that the model does not know: `error`, `skip` or `nearest`.
        """
        ids = encode_prompt(self.tokenizer, self._text(prompt), unknown, PROMPT)
        p = np.exp(log_softmax(Context(self.module, ids).scores.astype(np.float64)))[0]
        names = [self.tokenizer.decode([i]) for i in range(len(p))]
        order = np.argsort(-p, kind="stable").tolist()
        return {names[i].replace(BOUNDARY, ""): float(p[i]) for i in order if p[i] > 0}

    def logits(self, ids: Sequence[int] | Int[Any, "T"]) -> Float[Tensor, "T V"]:
        """Return the logits of the next character after each of some ids, of any number.

        >>> model = charlm.load("runs/gpt")
        >>> model.logits(model.tokenizer.encode("To be")).softmax(dim=-1)
        """
        idx = torch.as_tensor(np.asarray(ids), dtype=torch.int64, device=self.module.device)
        with evaluating(self.module), torch.no_grad():
            return self.module.read(idx[None])[0].float()

    def attention(self, text: Words, *, expert: str | None = None) -> Float[np.ndarray, "L H T T"]:
        """Return what each head of each layer looks at while the model reads a text, in float32.

        >>> weights = charlm.load("runs/gpt").attention("To be")
        >>> weights[-1, 0].argmax(axis=-1)  # where the first head of the last layer looks most

        `weights[layer, head, t, s]` is the share that position t takes from position s, which is t or
        before it; a row adds up to 1. There are as many positions as characters, at most
        `block_size`. In a run of records, the boundary comes first, as position 0.

        Args:
            text: What to read, at least one character.
            expert: Of a mixture: whose attention. None: that of the only one that has any.

        Raises:
            UsageError: The model or this expert has no attention, several experts have, or the text
                is empty or too long.
            DataError: A character of the text is not in the alphabet.
        """
        return attention_of(self._saved, text_of(self._saved, text, "text"), expert)

    def save(self, folder: str | Path) -> Run:
        """Copy the model to a new folder, which `charlm.load` reads: a run without its text and its log.

        >>> charlm.load("runs/gpt").save("alone")
        >>> charlm.load("alone").generate("To be")

        Raises UsageError if the folder is not empty, MachineError if the disk refuses.
        """
        from charlm.exchange.alone import write_alone

        write_alone(self._saved, Path(folder))
        return open_run(folder)

    @cached_property
    def _scorer(self) -> TextScorer:
        return TextScorer(self.module, self.tokenizer)

    def _text(self, words: Words) -> str:
        return text_of(self._saved, words, "text")

    def __repr__(self) -> str:
        return f"Model({str(self.run.path)!r}, step={self.step})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        described = self.config.model.described(self.tokenizer.vocab_size)
        return f"<b>{html.escape(described)}</b>, step {self.step:,} of {html.escape(str(self.run.path))}"


def load(
    run: str | Path | Run | None = None, checkpoint: str | int = "best", device: str = "auto"
) -> Model:
    """Load the model of a run; nothing but its folder is needed.

    >>> model = charlm.load("runs/gpt", checkpoint="last")

    Args:
        run: The run, or its folder; None: the newest in `runs/`.
        checkpoint: `best`, `last`, or a step.
        device: `auto`, `cpu`, `cuda` or `mps`.

    Raises:
        UsageError: `checkpoint` is none of these.
        CheckpointError: The run or checkpoint is missing, damaged, or does not fit the configuration.
        MachineError: The device is not there.
    """
    return Model(load_model(open_run(run).folder, str(checkpoint), device))


def _mark(char: str, bits: Sequence[float]) -> str:
    """Return a character on a background that is redder the more bits it took, up to 8.

    Of several bytes, each has its bits. A byte that is no character is shown as its number.
    """
    strength = min(max(sum(bits), 0.0), 8.0) / 8
    shown = html.escape(char)
    if char == "\n":
        shown = "↵\n"
    elif "\ud800" <= char <= "\udfff":
        shown = "".join(f"\\x{byte:02x}" for byte in as_bytes(char))
    title = " + ".join(f"{one:.2f}" for one in bits)
    return f'<span title="{title} bits" style="background: rgba(220, 60, 30, {strength:.2f})">{shown}</span>'
