"""Some texts of a part or a file."""

import numpy as np
import pytest

from charlm.config import DataConfig
from charlm.errors import DataError
from charlm.evaluation.given_texts import evenly, texts_of_part, texts_of_source
from charlm.text import ByteTokenizer, CharTokenizer, IdArray, open_source
from tests.evaluation.test_known import LETTERS, part_of
from tests.text.test_corpus import source_of

NAMES = [f"{a}{b}{c}" for a in "abc" for b in "abc" for c in "abc"]


@pytest.mark.parametrize("many", [1, 2, 7, 40, 1000])
def test_items_are_spread_evenly(many):
    for count in (1, 3, 10):
        texts, of = evenly(map(str, range(many)), count)

        texts = [int(text) for text in texts]
        assert of == many
        assert len(texts) == min(count, many)
        gaps = np.diff(texts)
        assert (gaps > 0).all()
        if len(texts) > 1:
            assert max(gaps) <= 2 * min(gaps)
            assert texts[-1] >= many - 1 - 1.3 * max(gaps)
    assert evenly([], 3) == ([], 0)


def test_records_of_a_part():
    some = texts_of_part(part_of(NAMES), LETTERS, 9, 500)

    assert (some.texts, some.of) == (NAMES[::3], 27)
    assert texts_of_part(part_of(NAMES), LETTERS, 99, 500).texts == NAMES


def test_stretches_of_a_part():
    tokenizer = CharTokenizer("".join(map(chr, range(97, 123))))
    part = IdArray(tokenizer.encode(tokenizer.alphabet))

    assert texts_of_part(part, tokenizer, 3, 4) == (["abcd", "lmno", "wxyz"], 6)
    assert texts_of_part(part, tokenizer, 3, 99) == ([tokenizer.alphabet], 1)
    raw = IdArray(np.frombuffer(b"a\xffb\xfe", np.uint8))
    assert texts_of_part(raw, ByteTokenizer(), 2, 2).texts == ["a\udcff", "b\udcfe"]


def test_texts_of_a_file():
    def read(data, count=99, length=4, **keys):
        return texts_of_source(source_of(data), DataConfig(**keys), count, length, notes)

    notes = []

    assert read(b"one\r\n\ntwo\r\nthree", records="lines") == (["one", "two", "three"], 3)
    assert read(b"one\ntwo\n\nthree\n", records="paragraphs").texts == ["one\ntwo", "three"]
    assert read("àbcdefghij".encode()) == (["àbcd", "efgh"], 2)
    assert read(b"abc") == (["abc"], 1)
    assert read(b"ab\xff\xfeabcd", unit="bytes").texts == ["ab\udcff\udcfe", "abcd"]
    assert read("\n".join(NAMES).encode(), 3, records="lines") == evenly(NAMES, 3)
    assert notes == ["1 empty line is left out", "2 lines end with \\r\\n, taken as \\n"]
    for data, keys in ((b"\n", {"records": "lines"}), (b"", {})):
        with pytest.raises(DataError, match="name another text"):
            read(data, **keys)


def test_a_list_is_read_for_a_run_of_a_column(tmp_path):
    (tmp_path / "list.txt").write_text("anna\nbob\n")
    (tmp_path / "list.csv").write_text('n,name\n1,"anna\n"\n2,bob\n')
    data = DataConfig(records="lines", column=2, skip_lines=1)

    plain, table = (
        texts_of_source(open_source(str(tmp_path / f"list.{kind}")), data, 9, 9, []).texts
        for kind in ("txt", "csv")
    )

    assert (plain, table) == (["anna", "bob"], ["anna\n", "bob"])
