"""The HTTP server: completions in OpenAI's dialect, scores, health, metrics and a page."""

import asyncio
import hmac
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
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from charlm.sampling.stream import Piece
from charlm.serving.description import describe
from charlm.serving.drawn import Drawing, Stream, teller
from charlm.serving.engine import Busy
from charlm.serving.messages import body_of, host_of, in_json, refusal
from charlm.serving.requests import CompletionRequest, NextRequest, Refused, ScoreRequest, checked
from charlm.serving.service import Served, prompts_of

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
            exception_handlers={HTTPException: _no_route, Exception: _mistake},  # type: ignore[dict-item]
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        for one in self.served.values():
            one.engine.tell = teller(asyncio.get_running_loop())
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
        host = host_of(request.headers.get("host", ""))
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
        return in_json({"status": "ok"})

    async def openapi(self, request: Request) -> Response:
        """The description of all this."""
        models = {name: one.most for name, one in self.served.items()}
        return in_json(describe(models, self.token is not None))

    async def metrics(self, request: Request) -> Response:
        """Counts for Prometheus."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    async def models(self, request: Request) -> Response:
        """The models."""
        return in_json({"object": "list", "data": [_card(one) for one in self.served.values()]})

    async def model(self, request: Request) -> Response:
        """One model."""
        return in_json(_card(self._named(request.path_params["name"])))

    async def score(self, request: Request) -> Response:
        """How likely texts are."""
        asked = checked(ScoreRequest, await body_of(request))
        return in_json(await run_in_threadpool(self._named(asked.model).scores, asked))

    async def next(self, request: Request) -> Response:
        """What may come next."""
        asked = checked(NextRequest, await body_of(request))
        return in_json(await run_in_threadpool(self._named(asked.model).likely, asked))

    async def completions(self, request: Request) -> Response:
        """Texts that continue prompts."""
        asked = checked(CompletionRequest, await body_of(request))
        one, n = self._named(asked.model), asked.n or 1
        one.check_size(asked)
        echoes: list[list[Piece]] = []
        for prompt in prompts_of(asked):
            echo = await run_in_threadpool(one.echoed, prompt, asked) if asked.echo else []
            echoes += [echo] * n
        drawing = Drawing(one, asked, echoes)
        return Stream(drawing) if asked.stream else await drawing.whole(request)

    def _named(self, name: str) -> Served:
        try:
            return self.served[name]
        except KeyError:
            known = ", ".join(self.served)
            raise Refused(f"no model {name!r} here; there is {known}", "model", 404) from None


async def _no_route(request: Request, error: HTTPException) -> Response:
    if error.status_code == 404:
        message = f"nothing is at {request.url.path}; see /openapi.json"
        if request.url.path.startswith("/v1/chat"):
            message = "a character model has no chat; use /v1/completions"
    else:
        message = f"{request.method} is not for {request.url.path}; see /openapi.json"
    response = refusal(Refused(message, status=error.status_code))
    response.headers.update(error.headers or {})
    return response


async def _mistake(request: Request, error: Exception) -> Response:
    return refusal(Refused("the server made a mistake; its log has more", status=500))


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
