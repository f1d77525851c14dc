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


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(connection, "REQUEST_SECONDS", SOON)
    monkeypatch.setattr(connection, "UNREAD_SECONDS", SOON)


@contextlib.contextmanager
def connected(address):
    """Connect to a server; give the socket."""
    place = urlsplit(address)
    with socket.socket() as client:
        client.settimeout(20)
        client.connect((place.hostname, place.port))
        yield client


def until_closed(client):
    """Return what comes until the server ends the connection, and the seconds to that."""
    since, parts = time.perf_counter(), []
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(1 << 16):
            parts.append(part)
    return b"".join(parts), time.perf_counter() - since


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
    with connected(address) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Padding: ")
        trickle(client, b"a" * 1000, 3 * SOON)
        answer, _ = until_closed(client)

    head, body = answer.split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    error = json.loads(body)["error"]
    assert error["message"] == f"the headers took longer than {SOON:g} seconds"
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("first", [b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_a_second_request_has_as_long_as_the_first(address, first):
    with connected(address) as client:
        if first:
            client.sendall(first)
            answer = b""
            while not answer.endswith(b"}"):
                answer += client.recv(1 << 16)
            client.sendall(b"GET")
        answer, seconds = until_closed(client)

    assert answer.startswith(b"HTTP/1.1 408 ") == bool(first)  # nothing was asked: nothing is said
    assert SOON / 2 < seconds < 10


def test_a_body_that_trickles_is_refused_and_then_not_read_on(address, monkeypatch):
    monkeypatch.setattr(messages, "BODY_SECONDS", SOON / 3)
    with connected(address) as client:
        head = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
        client.sendall(head)
        trickle(client, b"a" * 1000, 3 * SOON)
        answer, _ = until_closed(client)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer.lower()
    assert answer.count(b"HTTP/1.1") == 1


def test_a_body_after_the_answer_is_not_waited_for(address):
    with connected(address) as client:
        head = b"POST /v1/nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
        client.sendall(head)
        trickle(client, b"a" * 1000, 3 * SOON)
        answer, seconds = until_closed(client)

    assert answer.startswith(b"HTTP/1.1 404 ")
    assert seconds < 10


def test_an_answer_that_takes_longer_is_not_cut_off(address, served, monkeypatch):
    def slowly(asked):
        time.sleep(2 * SOON)
        return {"data": []}

    monkeypatch.setattr(served, "scores", slowly)
    body = b'{"model": "tiny", "input": "a"}'
    with connected(address) as client:
        head = f"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
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
