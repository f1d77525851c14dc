"""One thread that draws the texts of all requests to a model, a character of each at a step."""

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int

from charlm.runs.load import SavedModel
from charlm.sampling.draw import SHOWN, Ended, Task
from charlm.sampling.generate import Context
from charlm.sampling.stream import Alternatives, Piece, TextStream
from charlm.sampling.together import DrawnOne, OneText, Together

CONTEXTS = 8  # prompts that stay read: the samples of one request share theirs

# Texts from which on a step may take more threads. Fewer leave one core to whoever answers clients, because
# a step that waits for a thread on that core takes longer: on two cores (AVX2, the preset `gpt`), 8 clients
# get 890 characters a second from one thread and 720 from two, but 64 get 2,800 and 3,200.
MANY = 32


class Busy(Exception):
    """There are as many texts waiting as may."""


@dataclass(eq=False)
class Job:
    """A text to draw.

    Attributes:
        wake: Called with the text when there is more to take, once until it is taken, and at the end;
            see `Engine.tell`.
        eager: Whether `wake` is called for each character, not only at the end.
        error: Why it failed; None if it did not.
        ended: Why it ended; None before.
    """

    prompt: Int[np.ndarray, "T"]
    task: Task
    seed: int
    wake: Callable[["Job"], object]
    eager: bool = False
    ended: Ended | None = None
    error: Exception | None = None
    cancelled: bool = False
    drawn: int = 0  # ids
    _pieces: list[Piece] = field(default_factory=list)
    _woken: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def done(self) -> bool:
        """Whether it has ended or failed."""
        return self.ended is not None or self.error is not None

    def take(self) -> tuple[list[Piece], bool]:
        """Return the characters since the last call, and whether these are the last."""
        with self._lock:
            pieces, self._pieces, self._woken = self._pieces, [], False
            return pieces, self.done

    def _add(self, pieces: Sequence[Piece], ended: Ended | None = None) -> bool:
        """Add characters; tell whether to wake whoever waits for them."""
        with self._lock:
            self._pieces += pieces
            self.ended = ended
            wake = ended is not None or (self.eager and bool(pieces) and not self._woken)
            self._woken |= wake
        return wake


def wake_all(jobs: Sequence[Job]) -> None:
    """Wake whoever waits for these texts."""
    for job in jobs:
        job.wake(job)


class Engine:
    """Draws texts with one model.

    Args:
        saved: The model.
        at_once: Texts that are drawn together, at most; others wait.
        waiting: Texts that may wait, at most.
        threads: Of torch in a step of `MANY` texts or more; others have those of the process. None: all have.

    Attributes:
        tell: Called from the engine's thread after a step with the texts that have more to take: one call,
            because each wakes another thread, which then wants the interpreter. It calls `wake_all`.
    """

    def __init__(
        self,
        saved: SavedModel,
        at_once: int = 64,
        waiting: int = 256,
        threads: int | None = None,
    ) -> None:
        self.saved, self.at_once, self.waiting = saved, at_once, waiting
        self.characters = 0  # drawn so far
        self.tell: Callable[[Sequence[Job]], None] = wake_all
        self._together = Together(saved.model)
        self._queue: deque[Job] = deque()
        self._active: dict[OneText, tuple[Job, TextStream]] = {}
        self._contexts: OrderedDict[bytes, Context] = OrderedDict()
        self._condition = threading.Condition()
        self._closed = self._cancelled = False
        few = torch.get_num_threads()
        self._threads = few, threads or few
        self._thread = threading.Thread(target=self._run, name="charlm-engine", daemon=True)
        self._thread.start()

    @property
    def load(self) -> tuple[int, int]:
        """How many texts are being drawn, and how many wait."""
        return len(self._active), len(self._queue)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Begin texts, all of them or, if too many are waiting, none: then raise Busy."""
        with self._condition:
            free = self.at_once - len(self._active) + self.waiting
            if self._closed or len(self._queue) + len(jobs) > free:
                raise Busy
            self._queue += jobs
            self._condition.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """End texts that nobody waits for any more."""
        with self._condition:
            for job in jobs:
                job.cancelled = True
            self._queue = deque(job for job in self._queue if not job.cancelled)
            self._cancelled = True
            self._condition.notify()

    def close(self) -> None:
        """Finish what was begun, refuse all else, and wait for it."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._wait():
            woken: list[Job] = []
            try:
                self._begin(woken)
                if self._cancelled:
                    self._cancelled = False
                    self._end([text for text, (job, _) in self._active.items() if job.cancelled])
                self._use_threads()
                self._step(woken)
            except Exception as error:
                failed, self._active = self._active, {}
                self._together = Together(self.saved.model)  # what it held may be half read
                unfinished = [job for job, _ in failed.values() if not job.done]
                for job in unfinished:
                    job.error = error
                woken += [job for job in unfinished if job not in woken]
            if woken:
                self.tell(woken)

    def _wait(self) -> bool:
        """Wait for work; return whether there is any."""
        if self._active:
            return True
        with self._condition:
            while not (self._queue or self._closed):
                self._condition.wait()
            return bool(self._queue)

    def _begin(self, woken: list[Job]) -> None:
        """Read the prompts of texts that have a place now; add those that end with that to `woken`."""
        while self._queue and len(self._active) < self.at_once:
            with self._condition:
                if not self._queue:
                    return
                job = self._queue.popleft()
            if job.cancelled:
                continue
            if job.task.count == 0:
                job.ended = "length"
                woken.append(job)
                continue
            try:
                context = self._context(job.prompt)
                stream = TextStream(self.saved.tokenizer, job.task.stops)
                text = self._together.add(context, job.task.settings, job.seed)
            except Exception as error:  # of this text alone; else nobody would be told
                job.error = error
                woken.append(job)
                continue
            self._active[text] = job, stream

    def _use_threads(self) -> None:
        """Let this thread compute with as many of torch's threads as so many texts are worth."""
        few, many = self._threads
        threads = many if len(self._active) >= MANY else few
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)

    def _step(self, woken: list[Job]) -> None:
        """Draw a character of each text; add the texts that have more to take to `woken`."""
        ended = []
        for one in self._together.step():
            job, stream = self._active[one.text]
            if self._give(one, job, stream):
                woken.append(job)
            if job.ended:
                ended.append(one.text)
        self._end(ended)

    def _context(self, prompt: Int[np.ndarray, "T"]) -> Context:
        key = prompt.tobytes()
        if key not in self._contexts:
            self._contexts[key] = Context(self.saved.model, prompt)
        self._contexts.move_to_end(key)
        while len(self._contexts) > CONTEXTS:
            self._contexts.popitem(last=False)
        return self._contexts[key]

    def _give(self, one: DrawnOne, job: Job, stream: TextStream) -> bool:
        """Give a character to its text, and end the text if it is whole; see `Job._add`."""
        self.characters += 1
        job.drawn += 1
        likely = self._alternatives(one) if job.task.alternatives else None
        pieces = stream.push(one.idx, one.logprob, likely)
        ended: Ended | None = None
        if stream.ended:
            ended = "boundary" if stream.complete else "stop"
        elif job.drawn >= job.task.count:
            pieces, ended = pieces + stream.finish(), "length"
        return job._add(pieces, ended)

    def _alternatives(self, one: DrawnOne) -> Alternatives:
        likeliest = np.argsort(-one.log_p, kind="stable")[:SHOWN].tolist()
        decode = self.saved.tokenizer.decode
        return [(decode([i]), math.exp(one.log_p[i])) for i in likeliest]

    def _end(self, texts: Sequence[OneText]) -> None:
        """Take texts out of the steps."""
        if texts:
            self._together.remove(texts)
            for text in texts:
                del self._active[text]
