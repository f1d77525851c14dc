"""Texts of a trained model, by settings as Python gives them."""

from collections.abc import Iterator, Sequence
from typing import Any, get_args

from charlm.config import changed
from charlm.errors import Setting, UsageError
from charlm.evaluation.given import adaptive_reader
from charlm.runs.load import SavedModel
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
from charlm.text.raw import decoded
from charlm.text.tokenizer import Unknown

StrOrBytes = str | bytes  # bytes are UTF-8, or for a model of bytes any


def stream(saved: SavedModel, prompt: StrOrBytes | None, **options: Any) -> Iterator[str]:
    """Yield the characters of a text as they are drawn, without the prompt.

    A byte that is not UTF-8 is a lone surrogate: see `charlm.text.raw`. For the options, and what is
    raised, see `drawing`.
    """
    seed = choose_seed(options.pop("seed", None))
    drawn = drawing(saved, prompt, 1, **options)
    written = drawn.write([seed], drawn.streams([seed]))
    return (piece.text for pieces in written for piece in pieces[0])


def draw(saved: SavedModel, prompt: StrOrBytes | None, n: int, **options: Any) -> list[str]:
    """Return n texts; text i, from 0, is the one of `seed` + i. See `stream`."""
    first = choose_seed(options.pop("seed", None))
    seeds = [first + i for i in range(n)]
    drawn = drawing(saved, prompt, n, **options)
    return [text.text() for group in drawn.groups(seeds) for text in drawn.draw(group)]


def drawing(
    saved: SavedModel,
    prompt: StrOrBytes | None,
    n: int,
    *,
    stop: StrOrBytes | Sequence[StrOrBytes] | None = None,
    allow: str | None = None,
    unknown: Unknown = "error",
    weights: Weights = "float32",
    adapt: bool = False,
    **settings: Any,
) -> Drawing:
    """Return a prompt and how to continue it.

    Args:
        saved: The model.
        prompt: What to continue; None: the run's own prompt.
        n: How many texts will be drawn together.
        stop: A text ends before the first of these texts.
        allow: Draw only these characters, or this class of a regular expression: `[a-z ]`.
        unknown: For characters of the prompt that the model does not know: `error`, `skip`, or
            `nearest`.
        weights: `int8` uses a GPT's matrices in 8 bits: faster for large models, CPU only.
        adapt: Learn from the prompt first, as the section `adapt` of the configuration says.
        settings: Keys of the section `sample` of a configuration; the default is the run's own.

    Raises:
        UsageError: A setting is unknown or out of range, or a stop text is empty.
        DataError: A character of the prompt or of a stop text is not in the alphabet.
    """
    tokenizer = saved.tokenizer
    for name, value, known in (("unknown", unknown, Unknown), ("weights", weights, Weights)):
        if value not in get_args(known):
            raise UsageError(Setting(name, value), f"expected one of {get_args(known)}")
    given = [f"sample.{key}={value}" for key, value in settings.items() if value is not None]
    config = changed(saved.config, given).sample
    where, words = (CONFIGURED, config.prompt) if prompt is None else (PROMPT, prompt)
    ids = encode_prompt(tokenizer, text_of(saved, words, where), unknown, where)
    stops = [stop] if isinstance(stop, str | bytes) else stop or ()
    ends = [text_of(saved, words, Setting("stop")) for words in stops]
    task = task_of(tokenizer, config, ends, allow, weights)
    check_weights(weights, saved.model, adapt)
    learned = None
    if adapt:
        learned = Context(saved.model, ids, reader=AdaptedReader(adaptive_reader(saved)))
    return Drawing(saved.model, tokenizer, ids, task, texts=n, learned=learned)


def text_of(saved: SavedModel, words: StrOrBytes, where: Setting | str) -> str:
    """Return words as text, or raise DataError if they are bytes that a model of characters cannot read."""
    return words if isinstance(words, str) else decoded(words, saved.tokenizer.unit, where)
