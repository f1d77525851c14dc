"""A small web server on this machine, made to misbehave on request."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class FileServer:
    """Serves one file at every address.

    Args:
        content: The file.
    """

    def __init__(self, content: bytes = b"") -> None:
        self.content = content
        self.takes_ranges = True
        self.status: int | None = None  # answered in place of the file
        self.cuts: list[int] = []  # bytes after which each of the next answers breaks off
        self.asked: list[str | None] = []  # the Range header of each request
        self.sent = 0  # bytes of the file, over all requests
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        # poll_interval: shutdown() waits for it.
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}/file"

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                server.asked.append(wanted)
                start = 0
                if wanted and server.takes_ranges:
                    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                status = server.status or (206 if start else 200)
                body = server.content[start:] if status < 300 else b"no"
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                cut = server.cuts.pop(0) if server.cuts else len(body)
                # Counted first: a test may look as soon as it has received the last byte.
                server.sent += len(body[:cut]) if status < 300 else 0
                self.wfile.write(body[:cut])

            def log_message(self, *arguments: object) -> None:
                pass

        return Handler


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A web server that no proxy of the machine's stands before."""
    monkeypatch.setenv("no_proxy", "*")
    server = FileServer()
    yield server
    server.close()
