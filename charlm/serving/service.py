"""What a request means: from its fields to jobs of the engine, and from their characters to answers.

Nothing here knows HTTP.
"""

import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from charlm.config import SampleConfig, changed
from charlm.errors import CharlmError
from charlm.evaluation.predicting import evaluating
from charlm.library import Model
from charlm.sampling.choose import Settings, log_softmax
from charlm.sampling.draw import SHOWN, Ended, Task
from charlm.sampling.request import PROMPT, choose_seed, encode_prompt, task_of
from charlm.sampling.stream import Piece, TextStream
from charlm.serving.engine import Engine, Job
from charlm.serving.requests import (
    LONGEST_STOP,
    MOST_STOPS,
    CompletionRequest,
    NextRequest,
    Refused,
    ScoreRequest,
)
from charlm.text.raw import as_bytes, as_unicode

OWN = ("top_k", "top_p", "min_p", "repetition_penalty")  # keys of the section `sample`
SCORED = 16  # times the longest text: characters that one request may have scored
FINISHED: dict[Ended | None, str] = {
    "boundary": "stop",
    "stop": "stop",
    "length": "length",
    "interrupted": "length",
}


class Served:
    """One model that clients may ask for.

    Args:
        name: What they call it.
        model: The model.
        at_once, waiting, threads: See `Engine`.
        most: Characters of one text, at most.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        *,
        at_once: int = 64,
        waiting: int = 256,
        most: int = 4096,
        threads: int | None = None,
    ) -> None:
        self.name, self.model, self.most = name, model, most
        self.streamed = 0  # texts that are sent part by part now
        self.engine = Engine(model._saved, at_once, waiting, threads)
        self._settings: dict[tuple[Any, ...], Settings] = {}
        self._configs: dict[tuple[Any, ...], SampleConfig] = {}

    def check_size(self, asked: CompletionRequest) -> None:
        """Raise Refused if a request asks for more than it ever may."""
        texts, prompts = (asked.n or 1) * len(prompts_of(asked)), prompts_of(asked)
        if texts > self.engine.at_once + self.engine.waiting:
            most = self.engine.at_once + self.engine.waiting
            raise Refused(f"{texts} texts: at most {most} in one request", "n")
        if asked.echo and asked.logprobs is not None and sum(map(len, prompts)) > self.most:
            what = f"prompt: with echo and logprobs, at most {self.most} characters here"
            raise Refused(what, "prompt")

    def jobs(self, asked: CompletionRequest, wake: Callable[[Job], object]) -> list[Job]:
        """Return the texts of a request, not yet begun: n of each prompt; or raise Refused.

        Text i of a prompt is the one of `seed` + i.
        """
        n = asked.n or 1
        if asked.best_of not in (None, n):
            raise Refused("best_of: give n alone; use charlm sample --best-of", "best_of")
        try:
            task = self._task(asked)
            seed = choose_seed(asked.seed)
            prompts = [self._encoded(prompt, asked) for prompt in prompts_of(asked)]
        except CharlmError as error:
            raise Refused(_one_line(error)) from None
        eager = bool(asked.stream)
        return [Job(ids, task, seed + i, wake, eager) for ids in prompts for i in range(n)]

    def _encoded(self, prompt: str, asked: CompletionRequest) -> Any:
        return encode_prompt(self.model.tokenizer, prompt, asked.unknown, PROMPT)

    def _task(self, asked: CompletionRequest) -> Task:
        """Return how to draw; requests with equal settings share them, so that they are drawn at once."""
        stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
        if len(stops) > MOST_STOPS:
            raise Refused(f"stop: at most {MOST_STOPS} texts", "stop")
        if any(len(stop) > LONGEST_STOP for stop in stops):
            raise Refused(f"stop: at most {LONGEST_STOP} characters in each", "stop")
        count = self.most if asked.max_tokens is None else asked.max_tokens
        if count > self.most:
            raise Refused(f"max_tokens: at most {self.most} characters here", "max_tokens")
        temperature = 1.0 if asked.temperature is None else asked.temperature
        given = {name: getattr(asked, name) for name in OWN}
        key = (temperature, *given.values(), asked.allow)
        config = self._sample(key[:-1], temperature, given)
        task = task_of(
            self.model.tokenizer, config, stops, asked.allow, "float32", asked.logprobs is not None
        )
        settings = self._settings.setdefault(key, task.settings)
        return replace(task, settings=settings, count=count)

    def _sample(
        self, key: tuple[Any, ...], temperature: float, given: Mapping[str, Any]
    ) -> SampleConfig:
        """Return a request's section `sample`; to make one takes as long as some characters."""
        for kept in (self._settings, self._configs):
            if len(kept) > 1000:
                kept.clear()
        if key not in self._configs:
            plain = ["top_k=null", "top_p=null", "min_p=null", "typical_p=null"]
            plain += ["repetition_penalty=1", f"temperature={temperature}"]
            own = [f"{name}={value}" for name, value in given.items() if value is not None]
            changes = [f"sample.{change}" for change in [*plain, *own]]
            self._configs[key] = changed(self.model.config, changes).sample
        return self._configs[key]

    def echoed(self, prompt: str, asked: CompletionRequest) -> list[Piece]:
        """Return the characters of a prompt with their log-probabilities; the first has none (NaN)."""
        if asked.logprobs is None:
            return [Piece(prompt, math.nan)]
        module, tokenizer = self.model.module, self.model.tokenizer
        ids = self._encoded(prompt, asked)
        with evaluating(module), torch.no_grad():
            logits = module.read(torch.from_numpy(ids[None]).to(module.device))[0]
        log_p = log_softmax(logits.double().cpu().numpy())
        opening = len(ids) - len(tokenizer.encode(prompt, asked.unknown))  # none, or one symbol
        stream, pieces = TextStream(tokenizer), []
        for i in range(opening, len(ids)):
            row = log_p[i - 1]
            order = np.argsort(-row, kind="stable")[:SHOWN].tolist()
            likely = [(tokenizer.decode([j]), math.exp(row[j])) for j in order]
            pieces += stream.push(int(ids[i]), float(row[ids[i]]) if i else math.nan, likely)
        return pieces + stream.finish()

    def scores(self, asked: ScoreRequest) -> dict[str, Any]:
        """Return how likely texts are, and each of their characters."""
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        if sum(map(len, texts)) > SCORED * self.most:
            raise Refused(f"input: at most {SCORED * self.most} characters in all here", "input")
        try:
            scores = self.model.score(texts)
        except CharlmError as error:
            raise Refused(_one_line(error), "input") from None
        data = [
            {
                "index": i,
                "nats": one.total_nats,
                "bits_per_char": one.bits_per_char,
                "chars": len(one.nats),
                "unknown": one.unknown,
                "bits": [round(nats / math.log(2), 4) for nats in one.nats.tolist()],
            }
            for i, one in enumerate(scores)
        ]
        return {"object": "list", "model": self.name, "data": data}

    def likely(self, asked: NextRequest) -> dict[str, Any]:
        """Return the characters that may come next, the likeliest first."""
        try:
            found = self.model.next(asked.prompt, unknown=asked.unknown)
        except CharlmError as error:
            raise Refused(_one_line(error), "prompt") from None
        top = list(found.items())[: asked.top]
        return {"model": self.name, "next": [{"text": _shown(text), "p": p} for text, p in top]}


def prompts_of(asked: CompletionRequest) -> list[str]:
    """Return the prompts of a request; without one, an empty text."""
    return asked.prompt if isinstance(asked.prompt, list) else [asked.prompt or ""]


class Answer:
    """The answer to a request for completions, whole or in parts."""

    def __init__(self, asked: CompletionRequest, name: str) -> None:
        self.asked = asked
        self.head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": name,
        }

    def choice(
        self, index: int, pieces: Sequence[Piece], at: int, ended: Ended | None
    ) -> dict[str, Any]:
        """Return characters of one text, the first of which is its character `at`."""
        return {
            "index": index,
            "text": as_unicode("".join(piece.text for piece in pieces)),
            "logprobs": None if self.asked.logprobs is None else self._logprobs(pieces, at),
            "finish_reason": FINISHED[ended] if ended else None,
        }

    def whole(self, choices: Iterable[dict[str, Any]], read: int, written: int) -> dict[str, Any]:
        """Return all texts, and how many characters were read and written."""
        return self.head | {"choices": list(choices), "usage": usage(read, written)}

    def last(self, read: int, written: int) -> dict[str, Any]:
        """Return the last part of a stream that was asked for its usage."""
        return self.head | {"choices": [], "usage": usage(read, written)}

    def _logprobs(self, pieces: Sequence[Piece], at: int) -> dict[str, Any]:
        places, logprobs, top, shown = [], [], [], []
        for piece in pieces:
            places.append(at)
            at += len(piece.text)
            first = math.isnan(piece.nats)
            logprobs.append(None if first else piece.nats)
            likely = dict(_most(piece.likely or (), self.asked.logprobs or 0))
            shown.append(_shown(piece.text))
            own = {shown[-1]: piece.nats}
            top.append(None if first else {**likely, **own} if likely else {})
        return {
            "tokens": shown,
            "token_logprobs": logprobs,
            "top_logprobs": top if self.asked.logprobs else None,
            "text_offset": places,
        }


def usage(read: int, written: int) -> dict[str, int]:
    """Return how many characters a request took."""
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
    }


def _most(likely: Iterable[tuple[str, float]], count: int) -> Iterator[tuple[str, float]]:
    """Yield the likeliest characters and their log-probabilities in nats."""
    for (text, p), _ in zip(likely, range(count), strict=False):
        yield _shown(text), max(math.log(p), -9999.0) if p > 0 else -9999.0


def _shown(text: str) -> str:
    r"""Return a character, or a byte that is none, as that API writes it: `bytes:\\xe1`."""
    if "\ud800" <= text <= "\udfff":
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in as_bytes(text))
    return text


def _one_line(error: CharlmError) -> str:
    return error.lines()[0]
