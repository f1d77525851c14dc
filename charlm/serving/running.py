"""A server as a process: the address it listens on, and how it stops."""

import os
import socket
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from charlm.errors import MachineError, Phrase, Setting
from charlm.sampling.gpt_reader import load_loops
from charlm.serving.app import Server
from charlm.serving.connection import Connection

DRAIN = 30  # seconds in which texts that were begun may end
STOPPING = "finishing {} (once more: stop at once)"


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; raise MachineError if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:  # a name that is not known has a negative number
        why = os.strerror(number) if (number := error.errno or 0) > 0 else "no such address"
    mend = Phrase("choose another {} or {}", Setting("host"), Setting("port"))
    raise MachineError(_named(host, port), why[0].lower() + why[1:], mend)


def address(listening: socket.socket) -> str:
    """Return the URL of a socket."""
    host, port = listening.getsockname()[:2]
    return f"http://{_named(host, port)}"


def _named(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Runner(uvicorn.Server):
    """Answers requests until a signal comes; then it finishes the texts that were begun.

    Args:
        server: What is served.
        say: Called with a line for whoever runs this.
    """

    def __init__(self, server: Server, say: Callable[[str], None]) -> None:
        # What clients do wrong, they are told; here, only mistakes of the server are.
        config = uvicorn.Config(
            server.app,
            http=Connection,
            log_level="error",
            access_log=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=DRAIN,
            limit_concurrency=1000,
            server_header=False,
        )
        super().__init__(config)
        self.server, self.say = server, say

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer requests; meanwhile, load what a first long text would wait for."""
        await super().startup(sockets)
        threading.Thread(target=self._prepare, name="charlm-prepare", daemon=True).start()

    def _prepare(self) -> None:
        for one in self.server.served.values():
            load_loops(one.model.module)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop after what was begun; a second SIGINT stops at once."""
        loads = [one.engine.load for one in self.server.served.values()]
        begun = sum(drawn + waiting for drawn, waiting in loads)
        if begun and not self.should_exit:
            self.say(STOPPING.format("a text" if begun == 1 else f"{begun} texts"))
        super().handle_exit(sig, frame)
