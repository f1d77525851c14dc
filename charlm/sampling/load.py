"""A trained model in a few lines of Python.

import charlm

model = charlm.load("runs/gpt")
for piece in model.generate("ROMEO:", temperature=0.7):
    print(piece, end="", flush=True)
for one in model.score(["To be, or not to be", "Be to not or, be to"]):
    print(one.nats, one.bits_per_char, one.text)
print(model.attention("To be, or not to be").shape)  # layers, heads, characters, characters
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray

from charlm.config import changed
from charlm.errors import DataError, Setting, UsageError
from charlm.evaluation.each import TextScore, score_records
from charlm.evaluation.given import adaptive_reader
from charlm.models import LanguageModel
from charlm.models.looking import attention_weights, attentive
from charlm.runs import find_run
from charlm.runs.load import SavedModel, load_model
from charlm.sampling.adapted import AdaptedReader
from charlm.sampling.draw import Drawing
from charlm.sampling.generate import Context
from charlm.sampling.reader import Weights
from charlm.sampling.request import (
    CONFIGURED,
    PROMPT,
    check_weights,
    choose_seed,
    encode_prompt,
    task_of,
)
from charlm.text.raw import as_bytes, as_unicode, decoded
from charlm.text.tokenizer import Unknown

StrOrBytes = str | bytes  # bytes are UTF-8, or for a model of bytes any


class Writer:
    """A trained model that writes texts, tells how likely others are, and shows what it looks at."""

    def __init__(self, saved: SavedModel, printable: bool = True) -> None:
        self.saved = saved
        self.printable = printable  # if not, bytes that are not UTF-8 are kept: see `raw`

    def generate(
        self,
        prompt: StrOrBytes | None = None,
        *,
        seed: int | None = None,
        stop: StrOrBytes | Sequence[StrOrBytes] | None = None,
        allow: str | None = None,
        unknown: Unknown = "error",
        weights: Weights = "float32",
        adapt: bool = False,
        **settings: Any,
    ) -> Iterator[str]:
        """Yield the characters of a text as they are drawn, without the prompt.

        A byte that is not UTF-8 is U+FFFD here: see `generate_bytes`.

        Args:
            prompt: What to continue; None: the run's own prompt.
            seed: The same seed gives the same text; None: a new seed each time.
            stop: Generation ends before the first of these texts.
            allow: Draw only these characters, or this class of a regular expression: `[a-z ]`.
            unknown: For characters of the prompt that the model does not know: `error`, `skip`, or
                `nearest`.
            weights: `int8` uses a GPT's matrices in 8 bits: faster for large models, CPU only.
            adapt: Learn from the prompt first, as the section `adapt` of the configuration says.
            settings: Any key of the section `sample` of a configuration: `max_new_chars`,
                `temperature`, `top_k`, `top_p`, `min_p`, `typical_p`, `repetition_penalty`. The
                default is the run's own.

        Raises:
            UsageError: A setting is unknown or out of range, or a stop text is empty.
            DataError: A character of the prompt or of a stop text is not in the alphabet.
            NonFiniteError: The model's logits are NaN or infinite.
        """
        saved, tokenizer = self.saved, self.saved.tokenizer
        for name, value, known in (("unknown", unknown, Unknown), ("weights", weights, Weights)):
            if value not in get_args(known):
                raise UsageError(Setting(name, value), f"expected one of {get_args(known)}")
        given = [f"sample.{key}={value}" for key, value in settings.items() if value is not None]
        config = changed(saved.config, given).sample
        where, words = (CONFIGURED, config.prompt) if prompt is None else (PROMPT, prompt)
        ids = encode_prompt(tokenizer, self._text(words, where), unknown, where)
        stops = [stop] if isinstance(stop, str | bytes) else stop or ()
        ends = [self._text(words, Setting("stop")) for words in stops]
        task = task_of(tokenizer, config, ends, allow, weights)
        check_weights(weights, saved.model, adapt)
        learned = None
        if adapt:
            learned = Context(saved.model, ids, reader=AdaptedReader(adaptive_reader(saved)))
        drawing = Drawing(saved.model, tokenizer, ids, task, learned=learned)
        seeds = [choose_seed(seed)]
        written = drawing.write(seeds, drawing.streams(seeds))
        texts = (piece.text for pieces in written for piece in pieces[0])
        return map(as_unicode, texts) if self.printable else texts

    def generate_bytes(self, prompt: StrOrBytes | None = None, **options: Any) -> Iterator[bytes]:
        """Yield what `generate` does as bytes: UTF-8, or exactly what a model of bytes has drawn.

        It takes the arguments of `generate` and raises the same errors.
        """
        return map(as_bytes, Writer(self.saved, printable=False).generate(prompt, **options))

    def score(
        self, texts: Iterable[StrOrBytes], *, ahead: int | None = None
    ) -> Iterator[TextScore]:
        """Yield how likely each text is, in order, from its first character to its end.

        See `charlm.evaluation.each` for what is scored, for characters that the model does not know,
        and for the arguments; memory does not grow with the number of texts.

        Raises:
            UsageError: `texts` is a single text, or `ahead` is below 1.
            DataError: Bytes are not UTF-8, or a text holds the symbol that marks borders of records.
        """
        if isinstance(texts, str | bytes):
            raise UsageError("texts", "a single text", "put it into a list")
        read = (self._text(words, "texts") for words in texts)
        return score_records(self.saved.model, self.saved.tokenizer, read, ahead=ahead)

    def attention(
        self, text: StrOrBytes, *, expert: str | None = None
    ) -> Float[ndarray, "L H T T"]:
        """Return what each head of each layer looks at while the model reads a text, in float32.

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
        name, model = self._attentive(expert)
        tokenizer, where = self.saved.tokenizer, Setting("text")
        try:
            ids = tokenizer.encode(self._text(text, where)).astype(np.int64)
        except DataError as error:
            raise error.replace(where=where, mend="use characters of its own text") from None
        if tokenizer.boundary is not None:
            ids = np.append(tokenizer.boundary, ids)
        if not 1 <= len(ids) <= model.block_size:
            whose = f"expert {name}" if name else "this model"
            what = f"{len(ids)} symbols, and {whose} reads 1 to {model.block_size} at once"
            raise UsageError(where, what)
        return attention_weights(model, torch.from_numpy(ids)).numpy()

    def _attentive(self, expert: str | None) -> tuple[str, LanguageModel]:
        """Return the model whose attention is meant, and its name in a mixture."""
        found, own = attentive(self.saved.model), self.saved.config.model
        if expert is not None:
            if expert in found and own.members():
                return expert, found[expert]
            mend = f"those with attention: {', '.join(filter(None, found)) or 'none'}"
            raise UsageError(Setting("expert", expert), "no such expert with attention", mend)
        if len(found) == 1:
            return next(iter(found.items()))
        if not found:
            what = f"a model of type {own.type!r} has no attention"
            raise UsageError(self.saved.run.path, what, "use a gpt, attention or multihead run")
        names = ", ".join(found)
        raise UsageError(Setting("expert"), f"several have attention: {names}", "name one of them")

    def _text(self, words: StrOrBytes, where: Setting | str) -> str:
        unit = self.saved.tokenizer.unit
        return words if isinstance(words, str) else decoded(words, unit, where)


def load(
    run: str | Path | None = None, checkpoint: str | int = "best", device: str = "auto"
) -> Writer:
    """Load the model of a run folder; nothing else is needed.

    Args:
        run: The run folder; None: the newest in `runs/`.
        checkpoint: `best`, `last`, or a step.
        device: `auto`, `cpu`, `cuda` or `mps`.

    Raises:
        UsageError: `checkpoint` is none of these.
        CheckpointError: The run or checkpoint is missing, damaged, or does not fit the configuration.
        MachineError: The device is not there.
    """
    found = find_run(None if run is None else Path(run))
    return Writer(load_model(found, str(checkpoint), device))
