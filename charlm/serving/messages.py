"""What goes over HTTP: bodies in, JSON, events and errors out."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from charlm.serving.requests import Refused

MOST_BODY = 1 << 20  # bytes
BODY_SECONDS = 10.0  # in which a body must come
KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


async def body_of(request: Request) -> bytes:
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


def refusal(refused: Refused) -> Response:
    """Return an error as that API has it."""
    response = in_json(error_body(refused), refused.status)
    if refused.status == 408:  # else what still trickles in would be read for ever
        response.headers["Connection"] = "close"
    return response


def error_body(refused: Refused) -> dict[str, Any]:
    """Return the body of an error."""
    other = "invalid_request_error" if refused.status < 500 else "server_error"
    named = KINDS.get(refused.status, other)
    error = {"message": refused.message, "type": named, "param": refused.field, "code": None}
    return {"error": error}


def error_json(refused: Refused) -> str:
    """Return the body of an error as it goes over the wire."""
    return _text(error_body(refused))


def in_json(content: Mapping[str, Any], status: int = 200) -> Response:
    """Return an answer in JSON."""
    return Response(_text(content), status, media_type="application/json")


def event(content: Mapping[str, Any]) -> str:
    """Return one event of a stream."""
    return f"data: {_text(content)}\n\n"


class Events:
    """The events of one stream with a part of a text each. They begin alike: `head`."""

    def __init__(self, head: Mapping[str, Any]) -> None:
        self._beginning = f'data: {_text(head)[:-1]},"choices":['

    def one(self, choice: Mapping[str, Any]) -> str:
        """Return an event with a part."""
        return f"{self._beginning}{_text(choice)}]}}\n\n"


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":"))


def host_of(header: str) -> str:
    """Return the name in a Host header, without the port."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""
