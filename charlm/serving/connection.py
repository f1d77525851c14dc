"""A client's connection, which is closed if the client takes too long.

uvicorn limits the pause between two requests only: headers that never end, and answers that are not
read, would hold a connection for ever. A body that trickles is refused earlier: see `messages`.
"""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from charlm.serving.messages import error_json
from charlm.serving.requests import Refused

REQUEST_SECONDS = 20.0  # in which a whole request must come, from its first byte on
UNREAD_SECONDS = 60.0  # in which a client must take what has piled up for it: 64 KiB at most


class Connection(H11Protocol):
    """A connection with limits in seconds."""

    _coming: asyncio.TimerHandle | None = None  # closes it unless a whole request comes before
    _unread: asyncio.TimerHandle | None = None  # closes it unless the answer is read on before

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin: a request is expected."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take more of a request."""
        super().data_received(data)
        self._watch()

    def _watch(self) -> None:
        """Expect the rest of a request in time, if there is a rest."""
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._coming = _cancelled(self._coming)
        elif self._coming is None:
            self._coming = self.loop.call_later(REQUEST_SECONDS, self._late)

    def _late(self) -> None:
        """Close the connection; say why if headers have begun, and no answer has."""
        begun, _ = self.conn.trailing_data
        if begun and self.conn.our_state is h11.IDLE:
            what = f"the headers took longer than {REQUEST_SECONDS:g} seconds"
            body = error_json(Refused(what, status=408)).encode()
            head = (
                "HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()

    def pause_writing(self) -> None:
        """Note that the client does not read, or not fast enough."""
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Note that it has read on."""
        self._unread = _cancelled(self._unread)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._coming, self._unread = _cancelled(self._coming), _cancelled(self._unread)
        super().connection_lost(exc)


def _cancelled(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """Cancel a timer; return what stands in its place: none."""
    if timer is not None:
        timer.cancel()
    return None
