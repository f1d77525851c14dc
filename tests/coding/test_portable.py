import io
import os
import subprocess
import sys

import pytest

from charlm.coding.container import ContainerReader
from charlm.coding.methods import bytes_of, method_of, without_run
from charlm.coding.portable import PortableCoder
from charlm.coding.whole import decode, encode
from charlm.errors import DataError

QUIET = lambda size: None  # noqa: E731
TEXT = b"the quick brown fox jumps over the lazy dog. " * 40


def compressed(text, **options):
    out = io.BytesIO()
    method = without_run(bytes_of(io.BytesIO(text)))
    return encode(io.BytesIO(text), out, method, "text", **options), out.getvalue()


def restored(data):
    container, out = ContainerReader(io.BytesIO(data), "a.clm"), io.BytesIO()
    decode(container, out, method_of(container.header, "a.clm", None))
    return out.getvalue()


@pytest.mark.parametrize(
    "text", [b"", b"a", b"aaaa", b"ab" * 7, bytes(range(256)), TEXT], ids=lambda text: len(text)
)
def test_a_text_comes_back(text):
    assert restored(compressed(text)[1]) == text


def test_the_model_learns_from_block_to_block():
    coder = PortableCoder(bytes(sorted(set(TEXT))))

    codes = [coder.encode(TEXT, QUIET) for _ in range(4)]

    assert len(codes[0]) > len(codes[1]) > len(codes[3])
    assert coder.symbols == 4 * len(TEXT)
    assert coder.coded_bytes == sum(map(len, codes))


def test_a_stream_has_any_byte():
    class Stream(io.BytesIO):
        def seekable(self):
            return False

    assert bytes_of(Stream(b"ab")) == bytes(range(256))
    assert bytes_of(io.BytesIO(b"ba")) == b"ab"


def test_a_byte_that_appeared_meanwhile_is_refused():
    with pytest.raises(DataError, match="has a byte that it lacked when it was read first"):
        PortableCoder(b"ab").encode(b"abc", QUIET)


def test_a_file_of_another_model_of_bytes_is_refused_by_name():
    with pytest.raises(
        DataError, match=r"a\.clm: was written with the model 'old', this charlm has"
    ):
        method_of({"model": "portable", "engine": "old"}, "a.clm", None)


def test_another_machine_decodes_it(tmp_path):
    """Other kernels of BLAS and torch, other features of the processor, no compiled code at all."""
    _, data = compressed(TEXT)
    (tmp_path / "a.clm").write_bytes(data)
    other = os.environ | {
        "OPENBLAS_CORETYPE": "Prescott",
        "ATEN_CPU_CAPABILITY": "default",
        "NPY_DISABLE_CPU_FEATURES": "AVX2 AVX512F",
        "OMP_NUM_THREADS": "3",
        "NUMBA_DISABLE_JIT": "1",
    }

    subprocess.run(
        [sys.executable, "-m", "charlm", "decompress", "a.clm"], env=other, cwd=tmp_path, check=True
    )

    assert (tmp_path / "a").read_bytes() == TEXT
