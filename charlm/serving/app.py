"""The HTTP server: completions in OpenAI's dialect, scores, health, metrics and a page."""

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from charlm.sampling.stream import Piece
from charlm.serving.description import describe
from charlm.serving.engine import Busy, Job
from charlm.serving.requests import CompletionRequest, NextRequest, Refused, ScoreRequest, checked
from charlm.serving.service import Answer, Served, prompts_of

MOST_BODY = 1 << 20  # bytes
BODY_SECONDS = 10.0  # in which a body must come
PAUSE = 0.02  # seconds between two parts of a stream: characters in between go together
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
LOCAL = ("localhost", "127.0.0.1", "::1")


class Server:
    """The application and what it serves.

    Args:
        served: The models; the first answers where none is named.
        token: What clients must give as `Authorization: Bearer TOKEN`; None: nothing.
        hosts: Names by which clients may call this machine; None: any. A page of another site could
            else reach a server on this machine by a name of its own.
    """

    def __init__(
        self,
        served: Sequence[Served],
        *,
        token: str | None = None,
        hosts: Sequence[str] | None = LOCAL,
    ) -> None:
        self.served = {one.name: one for one in served}
        self.token, self.hosts = token, hosts
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "charlm_requests", "Requests answered", ["path", "status"], registry=self.registry
        )
        self.registry.register(_Load(self.served))
        self.app = Starlette(
            routes=[
                self._route("/", self.page, open=True),
                self._route("/health", self.health, open=True),
                self._route("/openapi.json", self.openapi, open=True),
                self._route("/metrics", self.metrics),
                self._route("/v1/models", self.models),
                self._route("/v1/models/{name:path}", self.model),
                self._route("/v1/completions", self.completions, "POST"),
                self._route("/v1/score", self.score, "POST"),
                self._route("/v1/next", self.next, "POST"),
            ],
            exception_handlers={HTTPException: _http_error},  # type: ignore[dict-item]
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        for one in self.served.values():
            await run_in_threadpool(one.engine.close)

    def _route(
        self,
        path: str,
        answer: Callable[[Request], Awaitable[Response]],
        method: str = "GET",
        open: bool = False,
    ) -> Route:
        async def guarded(request: Request) -> Response:
            try:
                self._check(request, open)
                response = await answer(request)
            except Refused as refused:
                response = refusal(refused)
            except Busy:
                response = refusal(
                    Refused("too many texts are waiting; try again in a second", status=429)
                )
                response.headers["Retry-After"] = "1"
            except ClientDisconnect:
                response = Response(status_code=499)
            self.requests.labels(path, response.status_code).inc()
            return response

        return Route(path, guarded, methods=[method])

    def _check(self, request: Request, open: bool) -> None:
        """Refuse a request that another site made, or that lacks the token."""
        host = _host(request.headers.get("host", ""))
        if self.hosts is not None and host not in self.hosts:
            raise Refused("this server does not answer by that name", status=421)
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
            raise Refused("pages of other sites may not use this server", status=403)
        if self.token is not None and not open:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self.token.encode()):
                raise Refused("give the server's token as Authorization: Bearer TOKEN", status=401)

    async def page(self, request: Request) -> Response:
        """The page."""
        text = files("charlm.serving").joinpath("page.html").read_text(encoding="utf-8")
        headers = {"Content-Security-Policy": PAGE_POLICY, "X-Content-Type-Options": "nosniff"}
        return HTMLResponse(text, headers=headers)

    async def health(self, request: Request) -> Response:
        """Whether it works."""
        return JSONResponse({"status": "ok"})

    async def openapi(self, request: Request) -> Response:
        """The description of all this."""
        return JSONResponse(describe())

    async def metrics(self, request: Request) -> Response:
        """Counts for Prometheus."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    async def models(self, request: Request) -> Response:
        """The models."""
        return JSONResponse(
            {"object": "list", "data": [_card(one) for one in self.served.values()]}
        )

    async def model(self, request: Request) -> Response:
        """One model."""
        return JSONResponse(_card(self._named(request.path_params["name"])))

    async def score(self, request: Request) -> Response:
        """How likely texts are."""
        asked = checked(ScoreRequest, await _body(request))
        return _json(await run_in_threadpool(self._named(asked.model).scores, asked))

    async def next(self, request: Request) -> Response:
        """What may come next."""
        asked = checked(NextRequest, await _body(request))
        return _json(await run_in_threadpool(self._named(asked.model).likely, asked))

    async def completions(self, request: Request) -> Response:
        """Texts that continue prompts."""
        asked = checked(CompletionRequest, await _body(request))
        one, more = self._named(asked.model), asyncio.Event()
        loop = asyncio.get_running_loop()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(more.set)

        jobs = one.jobs(asked, wake)
        echoes: list[list[Piece]] = []
        for prompt in prompts_of(asked):
            echo = await run_in_threadpool(one.echoed, prompt, asked) if asked.echo else []
            echoes += [echo] * (asked.n or 1)
        one.engine.submit(jobs)
        answer, read = Answer(asked, one.name), sum(map(len, prompts_of(asked)))
        if asked.stream:
            parts = _parts(one, jobs, echoes, answer, more, read)
            return StreamingResponse(parts, media_type="text/event-stream")
        return await _whole(request, one, jobs, echoes, answer, more, read)

    def _named(self, name: str) -> Served:
        try:
            return self.served[name]
        except KeyError:
            known = ", ".join(self.served)
            raise Refused(f"no model {name!r} here; there is {known}", "model", 404) from None


async def _whole(
    request: Request,
    one: Served,
    jobs: Sequence[Job],
    echoes: Sequence[Sequence[Piece]],
    answer: Answer,
    more: asyncio.Event,
    read: int,
) -> Response:
    """Return the answer when all texts are whole; end them if the client goes away."""
    texts: list[list[Piece]] = [list(echo) for echo in echoes]
    waiting = set(range(len(jobs)))
    gone = asyncio.ensure_future(_gone(request))
    try:
        while waiting:
            woken = asyncio.ensure_future(more.wait())
            await asyncio.wait({gone, woken}, return_when=asyncio.FIRST_COMPLETED)
            woken.cancel()
            if gone.done():
                raise ClientDisconnect
            more.clear()
            for i in sorted(waiting):
                pieces, done = jobs[i].take()
                texts[i] += pieces
                if done:
                    waiting.discard(i)
    finally:
        gone.cancel()
        one.engine.cancel([jobs[i] for i in waiting])
    for job in jobs:
        if job.error:
            raise _failed(job.error)
    choices = (
        answer.choice(i, pieces, 0, job.ended)
        for i, (pieces, job) in enumerate(zip(texts, jobs, strict=True))
    )
    return _json(answer.whole(choices, read, sum(job.drawn for job in jobs)))


async def _parts(
    one: Served,
    jobs: Sequence[Job],
    echoes: Sequence[Sequence[Piece]],
    answer: Answer,
    more: asyncio.Event,
    read: int,
) -> AsyncIterator[str]:
    """Yield the events of a stream; end its texts if the client goes away."""
    waiting, places = set(range(len(jobs))), [0] * len(jobs)
    try:
        for i, echo in enumerate(echoes):
            if echo:
                yield _event(answer.part(i, echo, 0, None))
                places[i] += sum(len(piece.text) for piece in echo)
        while waiting:
            await more.wait()
            more.clear()
            for i in sorted(waiting):
                pieces, done = jobs[i].take()
                if jobs[i].error:
                    yield _event(_error_body(_failed(jobs[i].error)))
                    return
                if pieces or done:
                    yield _event(answer.part(i, pieces, places[i], jobs[i].ended if done else None))
                    places[i] += sum(len(piece.text) for piece in pieces)
                if done:
                    waiting.discard(i)
            await asyncio.sleep(PAUSE)
        options = answer.asked.stream_options
        if options and options.include_usage:
            yield _event(answer.last(read, sum(job.drawn for job in jobs)))
        yield "data: [DONE]\n\n"
    finally:
        one.engine.cancel([jobs[i] for i in waiting])


async def _gone(request: Request) -> None:
    """Return when the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> bytes:
    """Return the body of a request, or raise Refused if it is too large or too slow."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > MOST_BODY:
                    raise Refused(f"the body is larger than {MOST_BODY:,} bytes", status=413)
                parts.append(part)
    except TimeoutError:
        raise Refused(f"the body took longer than {BODY_SECONDS:g} seconds", status=408) from None
    return b"".join(parts)


def _failed(error: Exception | None) -> Refused:
    """Return what a client is told if its text could not be drawn."""
    return Refused(str(error).splitlines()[0] if str(error) else type(error).__name__, status=500)


def refusal(refused: Refused) -> JSONResponse:
    """Return an error as that API has it."""
    return JSONResponse(_error_body(refused), refused.status)


def _error_body(refused: Refused) -> dict[str, Any]:
    kind = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    named = kind.get(
        refused.status, "invalid_request_error" if refused.status < 500 else "server_error"
    )
    error = {"message": refused.message, "type": named, "param": refused.field, "code": None}
    return {"error": error}


async def _http_error(request: Request, error: HTTPException) -> Response:
    response = refusal(Refused(error.detail, status=error.status_code))
    response.headers.update(error.headers or {})
    return response


def _json(content: Mapping[str, Any]) -> Response:
    return Response(_text(content), media_type="application/json")


def _event(content: Mapping[str, Any]) -> str:
    return f"data: {_text(content)}\n\n"


def _text(content: Mapping[str, Any]) -> str:
    # In ASCII: a lone surrogate, which stands for a byte, cannot be written otherwise.
    return json.dumps(content, separators=(",", ":"))


def _host(header: str) -> str:
    """Return the name in a Host header, without the port."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def _card(one: Served) -> dict[str, Any]:
    created = int(one.model.run.folder.written())
    return {"id": one.name, "object": "model", "created": created, "owned_by": "charlm"}


class _Load:
    """How busy the models are, for Prometheus."""

    def __init__(self, served: Mapping[str, Served]) -> None:
        self.served = served

    def collect(self) -> list[GaugeMetricFamily]:
        """Return the numbers now."""
        named = {
            "drawn": ("charlm_texts_drawn_now", "Texts that are being drawn"),
            "waiting": ("charlm_texts_waiting", "Texts that wait for a place"),
            "characters": ("charlm_characters", "Characters drawn since the start"),
        }
        found = {key: GaugeMetricFamily(*words, labels=["model"]) for key, words in named.items()}
        for name, one in self.served.items():
            drawn, waiting = one.engine.load
            found["drawn"].add_metric([name], drawn)
            found["waiting"].add_metric([name], waiting)
            found["characters"].add_metric([name], one.engine.characters)
        return list(found.values())
