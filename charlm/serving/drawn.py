"""Texts that are being drawn, and how a client gets them: whole, or part by part."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from charlm.sampling.stream import Piece
from charlm.serving.engine import Job, wake_all
from charlm.serving.messages import Events, error_body, event, in_json
from charlm.serving.requests import CompletionRequest, Refused
from charlm.serving.service import Answer, Served, prompts_of

PAUSE = (
    0.02  # seconds between two parts of a stream: characters in between go together, ends at once
)
PARTS = 64  # a second of all streamed texts together, about: more take time from drawing


class Drawing:
    """The texts of one request.

    Args:
        one: What draws them.
        asked: The request.
        echoes: What each text begins with: its prompt, or nothing.

    Raises Refused or Busy.
    """

    def __init__(
        self, one: Served, asked: CompletionRequest, echoes: Sequence[Sequence[Piece]]
    ) -> None:
        self._served, self.engine, self.echoes = one, one.engine, echoes
        self.answer = Answer(asked, one.name)
        self.read = sum(map(len, prompts_of(asked)))
        self._more, self._loop = asyncio.Event(), asyncio.get_running_loop()
        self._due = 0.0  # when the next part of a stream may go, by the loop's clock
        self._timer: asyncio.TimerHandle | None = None
        self.jobs = one.jobs(asked, self._wake)
        self.engine.submit(self.jobs)

    def _wake(self, job: Job) -> None:
        """Go on: at once if a text is whole, or when the next part may go."""
        if job.done or self._loop.time() >= self._due:
            self._more.set()
        elif self._timer is None:
            self._timer = self._loop.call_at(self._due, self._more.set)

    async def _next(self) -> None:
        """Wait until there is a part to send."""
        await self._more.wait()
        self._more.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due = self._loop.time() + max(PAUSE, self._served.streamed / PARTS)

    def end(self) -> None:
        """End the texts that are still being drawn."""
        if lasting := [job for job in self.jobs if not job.done]:
            self.engine.cancel(lasting)

    @property
    def written(self) -> int:
        """How many characters were drawn."""
        return sum(job.drawn for job in self.jobs)

    async def whole(self, request: Request) -> Response:
        """Return the answer when all texts are whole; end them if the client goes away."""
        gone = asyncio.ensure_future(_gone(request))
        try:
            while not all(job.done for job in self.jobs):
                woken = asyncio.ensure_future(self._more.wait())
                await asyncio.wait({gone, woken}, return_when=asyncio.FIRST_COMPLETED)
                woken.cancel()
                if gone.done():
                    raise ClientDisconnect
                self._more.clear()
        finally:
            gone.cancel()
            self.end()
        for job in self.jobs:
            if job.error:
                raise _failed(job.error)
        choices = (
            self.answer.choice(i, [*echo, *job.take()[0]], 0, job.ended)
            for i, (echo, job) in enumerate(zip(self.echoes, self.jobs, strict=True))
        )
        return in_json(self.answer.whole(choices, self.read, self.written))

    async def parts(self) -> AsyncIterator[str]:
        """Yield the events of a stream, those of one moment together."""
        self._served.streamed += len(self.jobs)
        try:
            async for part in self._parts():
                yield part
        finally:
            self._served.streamed -= len(self.jobs)

    async def _parts(self) -> AsyncIterator[str]:
        events = Events(self.answer.head)
        waiting, places = set(range(len(self.jobs))), [0] * len(self.jobs)
        for i, echo in enumerate(self.echoes):
            if echo:
                yield events.one(self.answer.choice(i, echo, 0, None))
                places[i] += sum(len(piece.text) for piece in echo)
        while waiting:
            await self._next()
            parts: list[str] = []
            for i in sorted(waiting):
                job = self.jobs[i]
                pieces, done = job.take()
                if job.error:
                    yield "".join(parts) + event(error_body(_failed(job.error)))
                    return
                if pieces or done:
                    ended = job.ended if done else None
                    parts.append(events.one(self.answer.choice(i, pieces, places[i], ended)))
                    places[i] += sum(len(piece.text) for piece in pieces)
                if done:
                    waiting.discard(i)
            if parts:
                yield "".join(parts)
        options = self.answer.asked.stream_options
        if options and options.include_usage:
            yield event(self.answer.last(self.read, self.written))
        yield "data: [DONE]\n\n"


def teller(loop: asyncio.AbstractEventLoop) -> Callable[[Sequence[Job]], None]:
    """Return what wakes those who wait in an event loop; see `Engine.tell`."""

    def tell(jobs: Sequence[Job]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody waits
            loop.call_soon_threadsafe(wake_all, jobs)

    return tell


class Stream(StreamingResponse):
    """The parts of texts; these end if the client goes away, even before the first part."""

    def __init__(self, drawing: Drawing) -> None:
        headers = {"Cache-Control": "no-store"}
        super().__init__(drawing.parts(), media_type="text/event-stream", headers=headers)
        self.drawing = drawing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.drawing.end()


async def _gone(request: Request) -> None:
    """Return when the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _failed(error: Exception) -> Refused:
    """Return what a client is told if its text could not be drawn."""
    return Refused(str(error).splitlines()[0] if str(error) else type(error).__name__, status=500)
