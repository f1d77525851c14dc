"""Split a block of any bytes into the characters of a run's alphabet and all others; join them again.

    bytes  ->  ids of the known characters, and the rest: which others there were, and where  ->  bytes

The model predicts the known characters as if nothing stood between them, as `charlm eval` does with
`--unknown uniform`. The rest is compressed with zlib.
"""

import zlib

import numpy as np
import numpy.typing as npt

from charlm.text.tokenizer import CharTokenizer, Tokenizer, code_points, of_code_points

Ids = npt.NDArray[np.int64]

_ANY = "latin-1"  # decodes any bytes, each as a character
_RUN = np.dtype("<u4")


def take_apart(data: bytes, tokenizer: Tokenizer, encoding: str) -> tuple[Ids, bytes]:
    """Return the ids of the characters that a tokenizer knows, and the rest, empty if there is none.

    `encoding` is that of the run's text. Bytes that are invalid in it count as characters that no
    alphabet has.
    """
    if not isinstance(tokenizer, CharTokenizer):
        return np.frombuffer(data, np.uint8).astype(np.int64), b""
    text, own = _decoded(data, encoding)
    codes = code_points(text)
    known = np.isin(codes, code_points(tokenizer.alphabet))
    ids = tokenizer.encode(text, "skip").astype(np.int64)
    if own and known.all():
        return ids, b""
    # Where known and other characters alternate, beginning with known ones.
    turns = np.flatnonzero(np.diff(known, prepend=True))
    runs = np.diff(turns, prepend=0, append=len(known)).astype(_RUN)
    others = of_code_points(codes[~known])
    parts = (bytes([own]), len(runs).to_bytes(4, "little"), runs.tobytes())
    return ids, zlib.compress(b"".join(parts) + others.encode("utf-8", "surrogatepass"), 9)


def put_together(ids: Ids, rest: bytes, size: int, tokenizer: Tokenizer, encoding: str) -> bytes:
    """Return the `size` bytes that `take_apart` was given.

    If the rest is damaged, raise ValueError or return other bytes.
    """
    if not isinstance(tokenizer, CharTokenizer):
        return ids.astype(np.uint8).tobytes()
    known = code_points(tokenizer.alphabet)[ids]
    if not rest:
        return of_code_points(known).encode(encoding, "surrogateescape")
    try:
        # A character of n bytes takes up to n + 4 here, and no more: a small file must not fill memory.
        unpacked = zlib.decompressobj().decompress(rest, 16 + 9 * size)
    except zlib.error as error:
        raise ValueError(str(error)) from None
    own, count = unpacked[:1] != b"\0", int.from_bytes(unpacked[1:5], "little")
    runs = np.frombuffer(unpacked[5 : 5 + 4 * count], _RUN)
    if int(runs.sum(dtype=np.uint64)) > size:
        raise ValueError("more characters than bytes")
    others = code_points(unpacked[5 + 4 * count :].decode("utf-8", "surrogatepass"))
    is_known = np.repeat(np.arange(len(runs)) % 2 == 0, runs)
    codes = np.empty(len(is_known), np.uint32)
    codes[is_known], codes[~is_known] = known, others
    return of_code_points(codes).encode(encoding if own else _ANY, "surrogateescape")


def _decoded(data: bytes, encoding: str) -> tuple[str, bool]:
    """Return the text of bytes, and whether it is in this encoding, which can give them back."""
    try:
        text = data.decode(encoding, "surrogateescape")
        if text.encode(encoding, "surrogateescape") == data:
            return text, True
    except UnicodeError:
        pass
    return data.decode(_ANY), False
