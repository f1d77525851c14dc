"""Columns of tables, against Python's writers of CSV and JSON, and pyarrow's of Parquet."""

import bz2
import csv
import gzip
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pyarrow import parquet
from pydantic import ValidationError

from charlm.config import DataConfig
from charlm.errors import DataError, MachineError
from charlm.text import Source, encode_corpus, reading, scan_text
from charlm.text.columns import lines_of, table_kind
from charlm.text.reading import table_note
from charlm.text.sources import Part
from charlm.text.survey import Survey
from tests.text.test_records import texts_of

VALUES = st.lists(st.text('a",\t\r\n é\u2028\x85', max_size=6), min_size=1, max_size=20)
TEXTS = ["one", "two, too", 'a "quote"', "line\nline\r\nend\n", "é語😀", "x" * 300, "one"]


def csv_of(rows, delimiter=",", **how):
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, **how).writerows(rows)
    return file.getvalue().encode()


def json_of(rows):
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def parquet_of(rows, **how):
    file = io.BytesIO()
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    parquet.write_table(pyarrow.table(columns), file, **how)
    return file.getvalue()


def table(kind, texts):
    """Return a table of two columns: n and text."""
    if kind in ("csv", "tsv"):
        rows = [["n", "text"], *([str(i), text] for i, text in enumerate(texts))]
        return csv_of(rows, "," if kind == "csv" else "\t")
    rows = [{"n": i, "text": text} for i, text in enumerate(texts)]
    return json_of(rows) if kind == "jsonl" else parquet_of(rows)


KINDS = ["csv", "tsv", "jsonl", "parquet"]


def source_named(**files):
    """Return a source of files with names: a_csv is a.csv."""
    parts = [Part(n.replace("_", "."), lambda d=d: io.BytesIO(d)) for n, d in files.items()]
    return Source("here", tuple(parts))


def records_of(folder, source, **keys):
    """Return the records of a source in its order, and the notes."""
    keys = {"column": "text", "records": "lines", "val_fraction": 0, "shuffle": False} | keys
    data = DataConfig(**keys)
    scan = scan_text(source, data)
    tokenizer = scan.tokenizer(data)
    corpus = encode_corpus(source, data, scan, tokenizer, folder)
    return texts_of(corpus, tokenizer), scan.notes


def refused(source, **keys):
    """Return the error for a source."""
    with pytest.raises(DataError) as caught:
        scan_text(source, DataConfig(**({"column": "text", "records": "lines"} | keys)))
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@given(values=VALUES, size=st.integers(4, 40))
@example(values=["a\r", "\nb", "\r\n"], size=4)
def test_each_value_is_a_record_with_its_line_ends(tmp_path_factory, kind, values, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "CHUNK_BYTES", size)
        source = source_named(**{f"a_{kind}": table(kind, [*values, "last"])})

        found, notes = records_of(tmp_path_factory.mktemp("t") / "t", source)

    assert found == [value for value in [*values, "last"] if value]
    left_out = [note for note in notes if "empty" in note]
    assert len(left_out) == ("" in values)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".XZ", ""])
def test_a_table_may_be_packed(tmp_path, kind, suffix):
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".XZ": gzip.compress, "": bytes}[suffix]
    part = Part(f"a.{kind}{suffix}", lambda: io.BytesIO(pack(table(kind, TEXTS))))

    assert records_of(tmp_path / "t", Source("here", (part,)))[0] == TEXTS


def test_files_of_all_kinds_make_one_list(tmp_path):
    source = source_named(**{f"a_{kind}": table(kind, [f"of {kind}"]) for kind in KINDS})

    assert records_of(tmp_path / "t", source)[0] == [f"of {kind}" for kind in KINDS]


def test_a_column_may_be_given_by_number(tmp_path):
    rows = [["1", "anna"], ["2", "bob"]]
    cases = {
        "a_csv": csv_of(rows),
        "a_tsv": csv_of(rows, "\t"),
        "a_jsonl": json_of(rows),
        "a_parquet": parquet_of([{"n": n, "who": who} for n, who in rows]),
    }
    for i, (name, content) in enumerate(cases.items()):
        source = source_named(**{name: content})
        found, notes = records_of(tmp_path / str(i), source, column=2)
        assert found == ["anna", "bob"]
        assert len(notes) == (name in ("a_csv", "a_tsv"))  # only there, these may be names


def test_by_number_a_header_is_a_record_until_it_is_skipped(tmp_path):
    source = source_named(a_csv=csv_of([["n", "name"], ["1", "anna"]]))

    found, notes = records_of(tmp_path / "a", source, column=2)
    skipped, none = records_of(tmp_path / "b", source, column=2, skip_lines=1)

    assert (found, skipped, none) == (["name", "anna"], ["anna"], [])
    assert notes == [
        "the first record is 'name'; if that is the name of the column, set data.skip_lines=1"
    ]


def test_digits_are_a_number_except_among_names_of_json(tmp_path):
    rows = source_named(a_csv=csv_of([["2020", "2"], ["anna", "bob"]]))
    objects = source_named(a_jsonl=json_of([{"1": "ceda", "2": "dora"}]))

    assert records_of(tmp_path / "t", rows, column="2")[0] == ["2", "bob"]
    assert records_of(tmp_path / "j", objects, column="2")[0] == ["dora"]
    assert DataConfig(column="2", records="lines").column == 2


def test_semicolons_separate_values_if_they_separate_the_names(tmp_path):
    semicolons = source_named(a_csv=csv_of([["n", "text"], ["1", "a, b; c"]], ";"))
    commas = source_named(a_csv=csv_of([["a;text", "text"], ["1", "a; b"]]))
    alone = source_named(a_csv=b"text\na; b\n")

    assert records_of(tmp_path / "s", semicolons)[0] == ["a, b; c"]
    with pytest.raises(DataError, match="line 1: there is no column 3, only 1 column"):
        records_of(tmp_path / "n", semicolons, column=3)
    assert records_of(tmp_path / "a", alone)[0] == ["a; b"]
    assert records_of(tmp_path / "c", commas)[0] == ["a; b"]


def test_lines_before_the_names_are_skipped(tmp_path):
    content = b"made on Monday\n\n" + table("csv", ["anna"])

    assert records_of(tmp_path / "t", source_named(a_csv=content), skip_lines=2)[0] == ["anna"]


def test_empty_and_missing_values_and_rows_are_left_out(tmp_path):
    rows = [{"text": None}, {"text": ""}, {"text": "anna"}, {"text": None}]
    note = ["1 value is empty and left out", "2 values are missing (null) and left out"]

    assert records_of(tmp_path / "j", source_named(a_jsonl=json_of(rows))) == (["anna"], note)
    assert records_of(tmp_path / "p", source_named(a_parquet=parquet_of(rows))) == (["anna"], note)
    content = b"text\r\n\r\nanna\r\n\r\n"
    assert records_of(tmp_path / "c", source_named(a_csv=content)) == (["anna"], [])
    content = b'\n{"text": "anna"}\n \n'
    assert records_of(tmp_path / "e", source_named(a_jsonl=content)) == (["anna"], [])


def test_line_ends_in_values_may_be_changed(tmp_path):
    source = source_named(a_csv=csv_of([["text"], ["a\r\nb\r"], ["\nc"]]))

    assert records_of(tmp_path / "a", source, newlines="lf")[0] == ["a\nb\n", "\nc"]
    assert records_of(tmp_path / "b", source, newlines="none")[0] == ["ab", "c"]


def test_a_mark_and_an_encoding_are_those_of_the_file(tmp_path):
    text = "text\nanna é\n"

    marked = source_named(a_csv=text.encode("utf-8-sig"))
    wide = source_named(a_csv=text.encode("utf-16"))

    assert records_of(tmp_path / "a", marked)[0] == ["anna é"]
    assert records_of(tmp_path / "b", wide, encoding="utf-16")[0] == ["anna é"]
    assert "a.csv: not UTF-8 at byte 6 (0xe9), line 2" in refused(
        source_named(a_csv=b"text\nb\xe9")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_column_names_those_that_there_are(kind):
    line = "" if kind == "parquet" else "line 1: "

    error = refused(source_named(**{f"a_{kind}": table(kind, ["x"])}), column="test")

    assert error == (
        f'a.{kind}: {line}there is no column \'test\'; set data.column to one of "n", "text"'
    )


def test_the_names_of_many_columns_are_cut_short():
    names = [f"c{i}" for i in range(1000)]

    error = refused(source_named(a_csv=csv_of([names])))

    assert error.endswith('"c10", "c11" and 988 more')


@pytest.mark.parametrize("kind", KINDS)
def test_a_number_that_is_too_large_is_refused(kind):
    error = refused(source_named(**{f"a_{kind}": table(kind, ["x"])}), column=3)

    if kind == "jsonl":
        names = 'set data.column to one of "n", "text"'
        assert error == f"a.jsonl: line 1: there is no column '3'; {names}"
    else:
        line = "" if kind == "parquet" else "line 1: "
        assert error == f"a.{kind}: {line}there is no column 3, only 2 columns; lower data.column"


DOUBLE = 'write "" for a quote inside of quotes'


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (
            b'text\nanna\n"bob\nceda\ndora\n',
            f"line 3: a quote is never closed; close it, or {DOUBLE}",
        ),
        (b'text\n"a"b\n', f"line 2: ',' expected after '\"'; {DOUBLE}"),
        (b'text\n"one\ntwo"x\n', f"line 3: ',' expected after '\"'; {DOUBLE}"),
        (
            b"text,n\nanna,1\nbob, too,2\n",
            "line 3: 3 columns, where the first row has 2; put a value that holds ',' into quotes",
        ),
        (
            b'text,n\n"two\nlines",1\nbob\n',
            "line 4: 1 column, where the first row has 2; put a value that holds ',' into quotes",
        ),
        (
            b"text,n,text\na,b,c\n",
            "line 1: 2 columns are called 'text'; give its number: data.column=1, with "
            "data.skip_lines=1 for the names",
        ),
    ],
)
def test_a_row_that_breaks_the_rules_of_csv_is_named(content, error):
    assert refused(source_named(a_csv=content)) == f"a.csv: {error}"
    skipped = b"a line\n" + content
    found = refused(source_named(a_csv=skipped), skip_lines=1)
    lines = [int(text.partition("line ")[2].partition(":")[0]) for text in (error, found)]
    assert lines[1] == lines[0] + 1


@pytest.mark.parametrize(
    ("row", "error"),
    [
        (b'{"text": ', "no JSON (Expecting value); write one JSON object a line"),
        (b"[" * 100_000, "no JSON (maximum recursion depth exceeded"),
        (b"1" * 5000, "no JSON (Exceeds the limit"),
        (b"5", "holds 5; write one JSON object a line"),
        (b'["a"]', "columns of a list have no names; give its number, such as data.column=1"),
        (b'{"text": 5}', "'text' holds 5, which is no text; name another data.column"),
        (b'{"text": ["a"]}', "'text' holds [\"a\"], which is no text"),
    ],
)
def test_a_row_that_is_no_json_or_no_text_is_named(row, error):
    content = b'{"text": "fine"}\n\n' + row + b"\n"

    found = refused(source_named(a_jsonl=content))
    later = refused(source_named(a_jsonl=b"a line\n" + content), skip_lines=1)

    assert found.startswith(f"a.jsonl: line 3: {error}")
    assert later == found.replace("line 3", "line 4")
    assert "\n" not in found


def test_a_parquet_file_that_holds_no_text_or_is_damaged_is_refused():
    numbers = refused(source_named(a_parquet=parquet_of([{"text": 1}])))
    packed = parquet_of([{"text": f"some text {i * i}"} for i in range(1000)])
    cut = refused(source_named(a_parquet=packed[:-20]))
    changed = bytearray(packed)
    changed[40:80] = bytes(40)
    damaged = refused(source_named(a_parquet=bytes(changed)))

    assert numbers == (
        "a.parquet: column 'text' holds values of type int64, which are no text; name another "
        "data.column"
    )
    assert cut.startswith("a.parquet: damaged, or no Parquet file (Parquet magic bytes not found")
    assert damaged.startswith("a.parquet: damaged, or no Parquet file (")


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_all_types_of_text_in_parquet_are_text(tmp_path, kind):
    array = pyarrow.array(TEXTS)
    array = array.dictionary_encode() if kind == "dictionary" else array.cast(kind)
    file = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": array}), file, row_group_size=2)

    assert records_of(tmp_path / "t", source_named(a_parquet=file.getvalue()))[0] == TEXTS


def test_without_pyarrow_its_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    source = source_named(a_parquet=table("parquet", TEXTS))

    with pytest.raises(MachineError, match=r"pyarrow is missing; pip install 'charlm\[parquet\]'"):
        scan_text(source, DataConfig(column="text", records="lines"))


def test_what_is_no_table_is_refused():
    assert refused(source_named(a_txt=b"anna\n")) == (
        "a.txt: no table: its name ends in none of .csv, .tsv, .tab, .jsonl, .ndjson, .parquet; "
        "rename it, or leave out data.column"
    )
    assert table_kind("texts/A.CSV.Gz") == "csv"
    assert table_kind("csv") is table_kind("a.csv.txt") is table_kind("-") is None


def test_parquet_without_a_column_is_named():
    with pytest.raises(
        DataError, match=r'looks like Parquet with the columns "n", "text"; name the column to read'
    ):
        scan_text(source_named(a_parquet=table("parquet", TEXTS)), DataConfig())


def test_a_column_without_text_is_refused():
    for content in (b"", b"text\n", b'text\n""\n'):
        assert "column 'text' holds no text" in refused(source_named(a_csv=content))


def test_columns_make_records():
    with pytest.raises(ValidationError, match=r"needs data\.records=lines"):
        DataConfig(column="text")


@pytest.mark.parametrize("given", [0, -1, "0", True, 1.5, "", ["text"]])
def test_what_names_no_column_is_refused(given):
    with pytest.raises(ValidationError, match="expected a name or a number from 1"):
        DataConfig(column=given, records="lines")


def test_values_that_are_divided_otherwise_are_another_text():
    def sha256(rows):
        data = DataConfig(column="text", records="lines")
        return scan_text(source_named(a_jsonl=json_of(rows)), data).sha256

    def rows(*texts):
        return [{"text": text} for text in texts]

    assert sha256(rows("ab", "c")) == sha256([{"n": 1, "text": "ab"}, {"text": "c"}])
    different = [rows("ab", "c"), rows("a", "bc"), rows("abc"), rows("ab\0c"), rows("ab\n", "c")]
    assert len(set(map(sha256, different))) == len(different)


def test_a_table_that_changes_between_the_passes_is_refused(tmp_path):
    versions = [table("csv", ["anna", "bob"]), table("csv", ["annab", "ob"])]
    source = Source("here", (Part("a.csv", lambda: io.BytesIO(versions.pop(0))),))
    data = DataConfig(column="text", records="lines")
    scan = scan_text(source, data)

    with pytest.raises(DataError, match="here: changed while it was being read"):
        encode_corpus(source, data, scan, scan.tokenizer(data), tmp_path / "t")


@pytest.mark.parametrize("kind", KINDS)
def test_progress_counts_bytes_of_the_disk(kind):
    seen = []
    content = table(kind, TEXTS * 1000)

    data = DataConfig(column="text", records="lines")
    scan_text(source_named(**{f"a_{kind}": content}), data, lambda what, read: seen.append(read))

    assert len(seen) > 1
    if kind != "parquet":  # of a Parquet file only that column is read, and its end twice
        assert sum(seen) == len(content)


def test_a_value_may_be_longer_than_csv_allows_by_itself(tmp_path):
    before = 131_072
    csv.field_size_limit(before)

    found, _ = records_of(tmp_path / "t", source_named(a_csv=table("csv", ["x" * 200_000])))

    first, _ = records_of(tmp_path / "f", source_named(a_csv=b"x" * 200_000), column=1)

    assert [len(one) for one in found + first] == [200_000] * 2
    assert csv.field_size_limit() == before


def test_a_value_that_is_too_long_is_refused(monkeypatch):
    monkeypatch.setattr("charlm.text.columns.LONGEST", 1000)

    for content in (b'text\n"' + b"x" * 900 + b"\n" * 900, b"text\n" + b"x" * 2000):
        assert "longer than 1,000 characters" in refused(source_named(a_csv=content))
    long = source_named(a_jsonl=b'{"text": "' + b"x" * 1000)
    assert refused(long).startswith("a.jsonl: a line is longer than 1,000 characters; check")


@given(st.lists(st.text("a\r\n", max_size=5)), st.sampled_from(["", "\n"]))
def test_lines_are_those_of_the_whole_text(texts, newline):
    whole = "".join(texts)

    assert [*lines_of(texts, newline, "here")] == [*io.StringIO(whole, newline=newline)]


MEASURE = """
from pathlib import Path
from charlm.config import DataConfig
from charlm.text import encode_corpus, open_source, scan_text
for name in ["small", "large"]:
    data = DataConfig(source=f"{name}.KIND", column="text", records="lines")
    source = open_source(data.source)
    scan = scan_text(source, data)
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    print(status["VmHWM"].split()[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="where Linux tells the peak")
@pytest.mark.parametrize("kind", KINDS)
def test_a_large_table_takes_no_more_memory_than_a_small_one(tmp_path, kind):
    random = np.random.default_rng(0)
    texts = [bytes(random.integers(97, 123, 1000).astype(np.uint8)).decode() for _ in range(1000)]
    for name, times in [("small", 2), ("large", 32)]:
        (tmp_path / f"{name}.{kind}").write_bytes(table(kind, texts * times))

    command = [sys.executable, "-c", MEASURE.replace("KIND", kind)]
    output = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True).stdout

    small, large = map(int, output.split())  # KiB
    assert large - small < 16 << 10


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_a_table_that_is_read_as_text_is_noted_with_its_columns(kind):
    source = source_named(**{f"a_{kind}": table(kind, TEXTS)})
    data = DataConfig()

    note, *_ = scan_text(source, data, survey=Survey(data)).notes

    assert note == (
        f'a.{kind} looks like a table with the columns "n", "text", but is read as one text; '
        "data.column=NAME data.records=lines reads one column, each value as a text of its own"
    )
    assert table_note(source, DataConfig(unit="bytes")) is None
    assert table_note(source, DataConfig(column="text", records="lines")) is None


def test_what_has_no_columns_is_not_called_a_table():
    for source in (
        source_named(a_txt=b"n,text\n1,a\n"),
        source_named(a_csv=b"anna\nbob\n"),
        source_named(a_jsonl=b'"anna"\n'),
        source_named(a_jsonl=b"anna\n"),
        source_named(a_csv=b""),
    ):
        assert table_note(source, DataConfig()) is None


def test_a_row_without_the_column_is_named_with_what_to_do(tmp_path):
    rows = [{"text": "anna"}, {"n": 1}, {"text": "bob"}]
    source = source_named(a_jsonl=json_of(rows))

    assert refused(source) == (
        "a.jsonl: line 2: this row has no 'text', which line 1 has; add it, or leave such rows out "
        "with data.missing=skip"
    )
    note = "1 value is missing and left out"
    assert records_of(tmp_path / "t", source, missing="skip") == (["anna", "bob"], [note])
    lists = source_named(a_jsonl=json_of([["a", "b"], ["c"]]))
    assert "line 2: this row has no column 2, which line 1 has" in refused(lists, column=2)
    assert records_of(tmp_path / "u", lists, column=2, missing="skip")[0] == ["b"]
    assert "holds no text" in refused(source, column="name", missing="skip")


def test_a_table_that_has_no_name_is_to_be_written_to_a_file():
    advice = "a pipe has none; write it to a file such as table.csv, or leave out data.column"

    assert refused(Source("here", (Part("standard input", io.BytesIO),))).endswith(advice)
