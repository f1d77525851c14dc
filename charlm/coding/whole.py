"""Code a whole text from one file into another, block by block; check each block when it is encoded."""

import codecs
import math
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO

from charlm.coding.coder import Coder, Tick
from charlm.coding.container import Block, ContainerReader, ContainerWriter, Digest
from charlm.coding.methods import Method, Read
from charlm.errors import MachineError, Stopped

AHEAD = 2  # blocks that may wait to be checked


@dataclass(frozen=True)
class Coded:
    """The sizes of a text and of its code.

    Args:
        size: Bytes of the text.
        coded_size: Bytes of the whole file that it was encoded to.
        symbols: Characters (or bytes) that were predicted; a run's alphabet may lack others.
        coded_bytes: Bytes of code for them, without the rest of the file.
    """

    size: int
    coded_size: int
    symbols: int
    coded_bytes: int

    @property
    def bits_per_byte(self) -> float:
        """Bits of the file per byte of the text; infinite for an empty text."""
        return 8 * self.coded_size / self.size if self.size else math.inf

    @property
    def nats_per_symbol(self) -> float:
        """Nats of code per predicted symbol, to compare with the model's loss; NaN for no symbol."""
        bits = 8 * self.coded_bytes
        return bits * math.log(2) / self.symbols if self.symbols else math.nan


def encode(
    read: Read,
    out: IO[bytes],
    method: Method,
    name: str,
    *,
    size: int | None = None,
    check: bool = True,
    tick: Tick = lambda size: None,
) -> Coded:
    """Encode a text, and write each block once it has been decoded to the same text.

    Args:
        read: Reads the text once, a block at a time.
        out: Where the container is written.
        method: How it is coded.
        name: What messages call the text.
        size: Its length in bytes, if known; kept in the file for the progress bar of decoding.
        check: Whether to decode each block, on another thread while encoding goes on.
        tick: Called with the number of bytes encoded since the last call and, if `check`, likewise
            with the number decoded; by one thread at a time. It may raise Stopped.

    Raises:
        MachineError: A block was decoded to another text; it is not written.
    """
    writer, whole = ContainerWriter(out, method.header, size), Digest()
    with method.working(), _Checker(method if check else None, name, tick) as checker:
        coder = method.make()
        waiting: deque[tuple[Block, Future[None] | None]] = deque()
        for number, text in enumerate(_blocks(read, coder.block_bytes), 1):
            whole.add(text)
            block = Block.of(number, text, coder.encode(text, checker.tick))
            waiting.append((block, checker.check(block)))
            while len(waiting) > AHEAD:
                _write(writer, *waiting.popleft())
        while waiting:
            _write(writer, *waiting.popleft())
    writer.end(whole)
    return Coded(whole.size, writer.size, coder.symbols, coder.coded_bytes)


def decode(
    container: ContainerReader, out: IO[bytes], method: Method, tick: Tick = lambda size: None
) -> int:
    """Write the text of a container, block by block, and return its length in bytes.

    Args:
        container: A container whose header was read.
        out: Gets each block after its checksum was verified.
        method: The one that encoded it.
        tick: Called with the bytes that were decoded since the last call. It may raise Stopped.

    Raises:
        DataError: The container is damaged or cut off.
        MachineError: A block is sound, but is decoded to another text than was encoded.
    """
    whole = Digest()
    with method.working():
        coder = method.make()
        for block in container.blocks():
            text = _decoded(coder, block, tick)
            if text is None:
                what = f"block {block.number} is decoded to another text here than where it was compressed"
                mend = "decompress it there, or on a machine like that one"
                raise MachineError(container.name, what, mend)
            whole.add(text)
            out.write(text)
    container.check(whole)
    return whole.size


def _decoded(coder: Coder, block: Block, tick: Tick) -> bytes | None:
    """Return the text of a block, or None if that is not what was encoded."""
    try:
        text = coder.decode(block.code, block.size, tick)
    except ValueError:
        return None
    return text if block.is_of(text) else None


class _Checker:
    """Decodes blocks on a thread of its own, in order; an error in the context ends that early."""

    def __init__(self, method: Method | None, name: str, tick: Tick) -> None:
        self._name, self._tick = name, tick
        self._pool = ThreadPoolExecutor(1)
        self._over, self._lock = threading.Event(), threading.Lock()
        # To make a coder may take many seconds, so that thread makes it.
        self._coder = self._pool.submit(method.make) if method else None

    def __enter__(self) -> "_Checker":
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._pool.shutdown(cancel_futures=True)

    def tick(self, size: float) -> None:
        """Pass on a tick of either thread, unless an error ended the work."""
        if self._over.is_set():
            raise Stopped
        with self._lock:
            self._tick(size)

    def check(self, block: Block) -> "Future[None] | None":
        """Begin to decode a block; the result raises MachineError if its text differs."""
        return self._pool.submit(self._check, block) if self._coder else None

    def _check(self, block: Block) -> None:
        assert self._coder is not None
        if _decoded(self._coder.result(), block, self.tick) is None:
            what = (
                f"block {block.number} was decoded to another text, so the run cannot compress it"
            )
            mend = "compress it without a run, which uses integer arithmetic"
            raise MachineError(self._name, what, mend)


def _write(writer: ContainerWriter, block: Block, checked: "Future[None] | None") -> None:
    if checked:
        checked.result()
    writer.add(block)


def _blocks(read: Read, size: int) -> Iterator[bytes]:
    """Yield a text in blocks that end, if it is UTF-8, between two characters."""
    left = b""
    while data := left + read(size):
        end = codecs.utf_8_decode(data, "surrogateescape", len(data) < size)[1]
        yield data[:end]
        left = data[end:]
