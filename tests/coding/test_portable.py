import io
import os
import subprocess
import sys
import zlib

import numpy as np
import pytest

from charlm.coding import bits
from charlm.coding.container import ContainerReader
from charlm.coding.methods import START, method_of, without_run
from charlm.coding.portable import PortableCoder, check_tree, tree_of
from charlm.coding.whole import decode, encode
from charlm.errors import DataError
from charlm.models import bit_tables

TEXT = b"The quick brown fox jumps over the lazy dog.\nPack my box with five dozen jugs! " * 20


def quiet(size):
    pass


def compressed(text):
    method, read = without_run(io.BytesIO(text))
    encode(read, out := io.BytesIO(), method, "text")
    return out.getvalue()


def restored(data):
    container, out = ContainerReader(io.BytesIO(data), "a.clm"), io.BytesIO()
    decode(container, out, method_of(container.header, "a.clm", None))
    return out.getvalue()


@pytest.mark.parametrize(
    "text", [b"", b"a", b"aaaa", b"ab" * 7, bytes(range(256)) * 2, TEXT], ids=lambda text: len(text)
)
def test_a_text_comes_back(text):
    assert restored(compressed(text)) == text


def test_the_model_learns_from_block_to_block():
    coder = PortableCoder(tree_of(TEXT, bytes(sorted(set(TEXT)))))

    codes = [coder.encode(TEXT, quiet) for _ in range(3)]

    assert len(codes[0]) > 4 * len(codes[1])
    assert coder.symbols == 3 * len(TEXT)
    assert coder.coded_bytes == sum(map(len, codes))


def test_a_block_is_coded_in_pieces_so_that_a_stop_need_not_wait_for_its_end(monkeypatch):
    monkeypatch.setattr(bits, "PIECE", 4)
    text, encoded, decoded = b"to be or n", [], []
    tree = tree_of(text, bytes(sorted(set(text))))

    code = PortableCoder(tree).encode(text, encoded.append)

    assert PortableCoder(tree).decode(code, len(text), decoded.append) == text
    assert encoded == decoded == [4, 4, 2]


def test_the_code_stays_what_it_is():
    """If this fails, files that were compressed before cannot be restored: change `ENGINE`."""
    number, letters = 1, []
    for _ in range(2000):
        number = number * 48271 % 0x7FFFFFFF
        letters.append(b"aaabbcd\ne "[number % 10])
    text = TEXT[:400] + bytes(letters)
    tree = "." * (len(set(text)) - 1) + "".join(f"{byte:02x}" for byte in sorted(set(text)))

    code = PortableCoder(tree).encode(text, quiet)

    assert (len(code), zlib.crc32(code)) == (800, 2095672048)


def test_no_table_depends_on_how_the_machine_rounds():
    p = (np.arange(4096) + 0.5) / 4096
    logit = np.arange(-bit_tables.TOP, bit_tables.TOP, 16) + 8
    exact = (
        np.log(p / (1 - p)) * bit_tables.UNIT,
        65536 / (1 + np.exp(-logit / bit_tables.UNIT)),
    )

    for numbers in exact:
        assert np.abs(numbers - np.floor(numbers) - 0.5).min() > 1e-6  # of a half


def test_a_tree_has_the_bytes_and_can_be_read():
    tree = tree_of(TEXT, bytes(sorted(set(TEXT))))

    check_tree(tree)
    assert tree.count(".") == len(set(TEXT)) - 1
    assert {tree[i : i + 2] for i in range(len(tree)) if tree[i] != "."} >= {
        f"{byte:02x}" for byte in TEXT
    }


@pytest.mark.parametrize(
    "tree", [".", "..6162", ".616263", ".6161", ".6g61", "61.", ". 661", "...."]
)
def test_what_is_no_tree_is_refused(tree):
    with pytest.raises(DataError, match=r"^a\.clm: is damaged in its header; get another copy"):
        method_of(header(tree=tree), "a.clm", None)


def header(**changes):
    method, _ = without_run(io.BytesIO(b"ab"))
    return {**method.header, **changes}


def test_a_file_of_another_engine_is_refused_by_name():
    with pytest.raises(
        DataError, match=r"a\.clm: was compressed with the model 'old', but this charlm has"
    ):
        method_of(header(engine="old"), "a.clm", None)


class OnlyOnce(io.BytesIO):
    """A stream that cannot be wound back."""

    def seekable(self):
        return False


def test_a_stream_is_looked_at_and_read_once():
    method, read = without_run(OnlyOnce(b"abcdefghij"))

    assert method.header == without_run(io.BytesIO(b"abcdefghij"))[0].header
    assert [read(4) for _ in range(4)] == [b"abcd", b"efgh", b"ij", b""]


def test_a_long_stream_may_have_bytes_that_its_start_has_not(monkeypatch):
    monkeypatch.setattr("charlm.coding.methods.START", 100)
    text = b"ab" * 60 + bytes(range(256))

    method, read = without_run(OnlyOnce(text))
    encode(read, out := io.BytesIO(), method, "text")

    assert START > 100
    assert restored(out.getvalue()) == text


def test_a_byte_that_appeared_meanwhile_is_refused():
    with pytest.raises(DataError, match="changed while it was being read"):
        PortableCoder(tree_of(b"ab", b"ab")).encode(b"abc", quiet)
    with pytest.raises(DataError, match="changed while it was being read"):
        PortableCoder(tree_of(b"", b"")).encode(b"a", quiet)


@pytest.mark.slow  # all is compiled again
def test_another_machine_decodes_it(tmp_path):
    """With other kernels of BLAS and torch, other features of the processor, other threads."""
    (tmp_path / "a.clm").write_bytes(compressed(TEXT))
    other = os.environ | {
        "OPENBLAS_CORETYPE": "Prescott",
        "ATEN_CPU_CAPABILITY": "default",
        "NPY_DISABLE_CPU_FEATURES": "AVX2 AVX512F",
        "OMP_NUM_THREADS": "3",
        "NUMBA_CPU_NAME": "generic",
    }

    subprocess.run(
        [sys.executable, "-m", "charlm", "decompress", "a.clm"], env=other, cwd=tmp_path, check=True
    )

    assert (tmp_path / "a").read_bytes() == TEXT
