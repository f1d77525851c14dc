"""A server of a tiny model, over real HTTP on loopback."""

import contextlib
import inspect
import threading
import time

import httpx
import pytest

from charlm.library import load

pytest.importorskip("uvicorn")
import uvicorn

from charlm.serving.app import Server
from charlm.serving.connection import Connection
from charlm.serving.service import Served

# A machine may pause a process for longer than the 5 seconds that httpx waits for an answer.
_patience = inspect.signature(httpx.get).parameters["timeout"].default
_patience.connect = _patience.read = _patience.write = _patience.pool = 60.0


@contextlib.contextmanager
def serving(server):
    """Serve on a free port while in this context; give the address."""
    config = uvicorn.Config(
        server.app,
        http=Connection,
        port=0,
        log_level="critical",
        timeout_keep_alive=60,  # a client of a test may pause for longer than 5 seconds
        timeout_graceful_shutdown=5,
    )
    runner = uvicorn.Server(config)
    thread = threading.Thread(target=runner.run)
    thread.start()
    while not runner.started:
        time.sleep(0.005)
    port = runner.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        runner.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def model(_trained):
    """A tiny GPT."""
    return load(_trained / "runs" / "tiny")


@pytest.fixture(scope="module")
def served(model):
    """The model as a server has it."""
    return Served("tiny", model)


@pytest.fixture(scope="module")
def address(served):
    """The address of a server."""
    with serving(Server([served])) as address:
        yield address
