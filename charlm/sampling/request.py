"""Check a request: prompt, stop texts, settings, allowed characters, seed, weights."""

import re
import secrets
import warnings
from collections.abc import Iterable
from dataclasses import fields, replace

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

from charlm.config import SampleConfig
from charlm.errors import DataError, Phrase, Setting, UsageError, Words
from charlm.models import LanguageModel
from charlm.sampling.choose import Settings
from charlm.sampling.draw import Task
from charlm.sampling.reader import Weights
from charlm.text.tokenizer import Tokenizer, Unknown, opening_id

PROMPT, CONFIGURED = Setting("prompt"), Setting("sample.prompt")  # as an argument, as a key
SEEDS = 2**62  # limit of a seed, so that seeds that count up from it fit into 64 bits
A_CLASS = re.compile(r"\[\^?\]?(\\.|[^\]\\])*\]|\\[wWdDsS]", re.DOTALL)  # as [^a-z\]] or \d

# What people type where no shell or language reads it as an escape.
_ESCAPES = {r"\n": ("\n", "a newline"), r"\r": ("\r", "a carriage return"), r"\t": ("\t", "a tab")}
_ESCAPE = re.compile(r"\\[nrt]")


def encode_prompt(
    tokenizer: Tokenizer, prompt: str, unknown: Unknown = "error", where: Words = PROMPT
) -> Int[ndarray, "T"]:
    """Return the ids of a prompt, at least one.

    An empty prompt becomes a newline, or the first symbol of an alphabet without newlines. Of records,
    the prompt is the beginning of one, so the boundary comes before it.
    Characters outside the alphabet raise a DataError (`error`), are left out (`skip`), or are
    replaced by similar ones (`nearest`). To a model with an escape, those that would raise an error
    are some rare character. `where` says where the prompt comes from.
    """
    try:
        ids = tokenizer.encode(prompt, unknown)
    except DataError as error:
        words = "use {} to take similar characters instead, or {} to leave such characters out"
        mend: Words = Phrase(words, *(Setting("unknown", value) for value in ("nearest", "skip")))
        if where == CONFIGURED:
            mend = "use characters of the text"
        if escape_in(prompt) and not knows(tokenizer, "\\"):
            mend = _newline(prompt, where)
        raise error.replace(where=where, mend=mend) from None
    if tokenizer.boundary is not None or not len(ids):
        ids = np.append(opening_id(tokenizer), ids)
    return ids.astype(np.int64)


def encode_stops(
    tokenizer: Tokenizer, stops: Iterable[str], allowed: Bool[ndarray, "V"] | None = None
) -> list[Int[ndarray, "_"]]:
    """Return the ids of stop texts.

    Raises:
        UsageError: One is empty: every text would end before it begins. Or one has a character that
            is not `allowed`: it would never end a text.
        DataError: One has a character outside the alphabet: it would never end a text.
    """
    found = []
    for stop in stops:
        setting = Setting("stop", stop)
        if not stop:
            raise UsageError(setting, "empty, so each text would end at once", "leave it out")
        try:
            found.append(tokenizer.encode(stop).astype(np.int64))
            if tokenizer.escape is not None and tokenizer.escape in found[-1]:
                raise DataError("", "holds a character that is not in this model's alphabet")
        except DataError as error:
            mend: Words = "leave it out"
            if escape_in(stop) and not knows(tokenizer, "\\"):
                mend = _newline(stop, Setting("stop"))
            what = f"{error.what}, so no text can have it"
            raise error.replace(where=setting, what=what, mend=mend) from None
        if allowed is not None and not allowed[found[-1]].all():
            out = "{} leaves out a character of it, so no text can have it"
            mend = "allow it, too, or leave the stop text out"
            raise UsageError(setting, Phrase(out, Setting("allow")), mend)
    return found


def escape_in(text: str) -> str:
    r"""Return the first \n, \r or \t that was typed as a backslash and a letter; or nothing."""
    found = _ESCAPE.search(text)
    return found[0] if found else ""


def meant_by(escape: str) -> str:
    r"""Return the name of the character that \n, \r or \t stands for."""
    return _ESCAPES[escape][1]


def knows(tokenizer: Tokenizer, character: str) -> bool:
    """Tell whether a character is in the alphabet."""
    return len(tokenizer.encode(character, "skip")) > 0


def _newline(text: str, where: Words) -> Words:
    """Say how to write what was meant by a backslash and a letter."""
    meant = _ESCAPE.sub(lambda found: _ESCAPES[found[0]][0], text)
    name = _ESCAPES[escape_in(text)][1]
    if where == CONFIGURED:
        words = f"for {name}, put the value in double quotes in the file, or write {{}}"
        return Phrase(words, replace(CONFIGURED, value=meant))
    if isinstance(where, Setting):
        return Phrase(f"for {name}, write {{}}", replace(where, value=meant))
    return f"write {name} itself"


def settings_of(
    config: SampleConfig, tokenizer: Tokenizer, allowed: Bool[ndarray, "V"] | None = None
) -> Settings:
    """Return the settings of a configuration; `allowed` as `drawn_ids` says by default."""
    allowed = drawn_ids(tokenizer) if allowed is None else allowed
    names = {field.name for field in fields(Settings)} - {"allowed", "boundary"}
    own = {name: getattr(config, name) for name in names}
    return Settings(**own, allowed=allowed, boundary=tokenizer.boundary)


def task_of(
    tokenizer: Tokenizer,
    config: SampleConfig,
    stops: Iterable[str],
    allow: str | None,
    weights: Weights,
    alternatives: bool = False,
) -> Task:
    """Return how to continue a prompt, or raise the errors of `allowed_ids` and `encode_stops`."""
    allowed = drawn_ids(tokenizer) if allow is None else allowed_ids(tokenizer, allow)
    ends = encode_stops(tokenizer, stops, allowed)
    settings = settings_of(config, tokenizer, allowed)
    return Task(settings, config.max_new_chars, ends, weights, alternatives)


def drawn_ids(tokenizer: Tokenizer) -> Bool[ndarray, "V"] | None:
    """Return which ids may be drawn: all but the escape, which is no character. None: all."""
    if tokenizer.escape is None:
        return None
    drawn = np.ones(tokenizer.vocab_size, bool)
    drawn[tokenizer.escape] = False
    return drawn


def allowed_ids(tokenizer: Tokenizer, allow: str) -> Bool[ndarray, "V"]:
    """Return which ids may be drawn.

    `allow` is a class of a regular expression, such as `[a-z ]`, or the characters themselves. For
    a model of bytes: the bytes of these characters; of a class, its ASCII characters. Raises
    UsageError if the class cannot be read, or the alphabet has none of the characters.
    """
    setting, found = Setting("allow", allow), np.zeros(tokenizer.vocab_size, bool)
    of_bytes = tokenizer.unit == "bytes"
    if A_CLASS.fullmatch(allow):
        try:
            with warnings.catch_warnings(action="ignore"):  # about future meanings of a class
                pattern = re.compile(allow)
        except re.error as error:
            raise UsageError(setting, str(error), "write a class as [a-z]") from None
        for i in range(128 if of_bytes else tokenizer.vocab_size):
            found[i] = pattern.fullmatch(tokenizer.decode([i])) is not None
    else:
        if escape_in(allow) and not knows(tokenizer, "\\"):
            what = f"a backslash and {escape_in(allow)[1]!r}, and this model has no backslash"
            raise UsageError(setting, what, _newline(allow, Setting("allow")))
        found[tokenizer.encode(allow, "skip")] = True
    if tokenizer.escape is not None:
        found[tokenizer.escape] = False
    if tokenizer.boundary is not None:
        found[tokenizer.boundary] = False
    if not found.any():
        mend = "use ASCII in a class for a model of bytes" if of_bytes else ""
        raise UsageError(setting, "this model's alphabet has no such character", mend)
    if tokenizer.boundary is not None:  # a record may always end
        found[tokenizer.boundary] = True
    return found


def choose_seed(seed: int | None) -> int:
    """Return a seed, drawn if it is None; raise UsageError if it is out of range."""
    if seed is None:
        return secrets.randbelow(2**31)  # short enough to read aloud
    if not 0 <= seed < SEEDS:
        raise UsageError(Setting("seed", seed), "out of range", "use a number from 0 to 2^62 - 1")
    return seed


def check_weights(weights: Weights, model: LanguageModel, adapt: bool = False) -> None:
    """Raise UsageError for 8-bit weights if the model is to learn, or is not on a CPU."""
    if weights == "int8" and adapt:
        what = "only float32 weights can learn from the prompt"
        raise UsageError(Setting("weights", weights), what, "leave it out, or do not adapt")
    if weights == "int8" and model.device.type != "cpu":
        mend = Phrase("leave it out, or use {}", Setting("device", "cpu"))
        what = f"not for {model.device}, only for a CPU"
        raise UsageError(Setting("weights", weights), what, mend)
