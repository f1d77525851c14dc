"""Clients that take for ever lose their connection; those that wait for a long answer keep it."""

import asyncio
import contextlib
import json
import socket
import time
from urllib.parse import urlsplit

import pytest

pytest.importorskip("uvicorn")
import uvicorn
from uvicorn.server import ServerState

from charlm.serving import connection, messages

SOON = 0.2  # seconds
IN_EARNEST = connection.REQUEST_SECONDS


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(connection, "REQUEST_SECONDS", SOON)
    monkeypatch.setattr(connection, "UNREAD_SECONDS", SOON)


@contextlib.contextmanager
def connected(address):
    """Connect to a server; give the socket."""
    place = urlsplit(address)
    with socket.socket() as client:
        client.settimeout(60)
        client.connect((place.hostname, place.port))
        yield client


@contextlib.contextmanager
def asking(address, data):
    """Connect to a server and send something at once; give the socket."""
    while True:
        since = time.perf_counter()
        with connected(address) as client:
            client.sendall(data)
            if time.perf_counter() - since < SOON / 2:  # else this machine paused: once more
                yield client
                return


def until_closed(client):
    """Return what comes until the server ends the connection."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(1 << 16):
            parts.append(part)
    return b"".join(parts)


def trickle(client, data, seconds):
    """Send a byte now and then, for so long or until the connection has ended."""
    end = time.perf_counter() + seconds
    with contextlib.suppress(ConnectionError):
        for byte in data:
            client.sendall(bytes([byte]))
            time.sleep(0.02)
            if time.perf_counter() > end:
                return


def test_headers_that_never_end_are_refused(address):
    with asking(address, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Padding: ") as client:
        trickle(client, b"a" * 1000, 3 * SOON)
        answer = until_closed(client)

    head, body = answer.split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    error = json.loads(body)["error"]
    assert error["message"] == f"the headers took longer than {SOON:g} seconds"
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("first", [b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_a_second_request_has_as_long_as_the_first(address, first):
    since = time.perf_counter()
    with asking(address, first) as client:
        if first:
            answer = b""
            while not answer.endswith(b"}"):
                answer += client.recv(1 << 16)
            since = time.perf_counter()
            client.sendall(b"GET")
        answer = until_closed(client)
    seconds = time.perf_counter() - since

    assert answer.startswith(b"HTTP/1.1 408 ") == bool(first)  # nothing was asked: nothing is said
    assert SOON / 2 < seconds < IN_EARNEST


def test_a_body_that_trickles_is_refused_and_then_not_read_on(address, monkeypatch):
    monkeypatch.setattr(messages, "BODY_SECONDS", SOON / 3)
    head = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    with asking(address, head) as client:
        trickle(client, b"a" * 1000, 3 * SOON)
        answer = until_closed(client)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer.lower()
    assert answer.count(b"HTTP/1.1") == 1


def test_a_body_after_the_answer_is_not_waited_for(address):
    head = b"POST /v1/nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
    since = time.perf_counter()
    with asking(address, head) as client:
        trickle(client, b"a" * 1000, 3 * SOON)
        answer = until_closed(client)

    assert answer.startswith(b"HTTP/1.1 404 ")
    assert time.perf_counter() - since < IN_EARNEST


def test_an_answer_that_takes_longer_is_not_cut_off(address, served, monkeypatch):
    def slowly(asked):
        time.sleep(2 * SOON)
        return {"data": []}

    monkeypatch.setattr(served, "scores", slowly)
    body = b'{"model": "tiny", "input": "a"}'
    head = f"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with asking(address, head.encode() + body) as client:
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


class Transport(asyncio.Transport):
    """One that notes whether it was aborted."""

    aborted = False

    def abort(self):
        self.aborted = True

    def is_closing(self):
        return self.aborted


@pytest.mark.parametrize("reads", [True, False])
def test_an_answer_must_be_read(reads):
    async def left_unread():
        transport = Transport()
        config = uvicorn.Config(lambda *_: None, http=connection.Connection)
        client = connection.Connection(config, ServerState(), {})
        client.connection_made(transport)
        client.pause_writing()
        if reads:
            client.resume_writing()
        client._coming.cancel()  # a limit of its own
        await asyncio.sleep(2 * SOON)
        return transport.aborted

    assert asyncio.run(left_unread()) == (not reads)
