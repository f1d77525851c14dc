import hashlib
import re

import pytest

from charlm.text import DATASETS
from charlm.text.datasets import Dataset, Pin
from charlm.text.sources import EMBEDDED


def test_every_named_text_is_listed_with_whether_it_is_here(charlm, tmp_path, monkeypatch):
    monkeypatch.setenv("CHARLM_DATA", str(tmp_path))
    DATASETS["names"].path().write_text("anna\n")

    result = charlm("data", "list")

    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert (result.code, result.stderr) == (0, "")
    assert list(lines) == [*EMBEDDED, *DATASETS]
    assert " built in " in lines["python-docs"]
    assert " here " in lines["names"]
    assert " not fetched " in lines["shakespeare"]


def test_a_text_is_described(charlm, tmp_path):
    (tmp_path / "a.txt").write_text("hello world\n" * 10)

    result = charlm("data", "info", "a.txt")

    rows = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert (result.code, result.stderr) == (0, "")
    assert rows == {
        "source": "a.txt",
        "size": "120 characters",
        "sha256": hashlib.sha256(b"hello world\n" * 10).hexdigest(),
        "symbols": "9 different characters",
        "alphabet": repr("\n dehlorw"),
        "train": "108 characters, to learn from",
        "val": "12 characters, to measure the loss on",
    }


def test_the_always_present_text_is_described(charlm):
    result = charlm("data", "info", "python-docs", "--unit", "bytes")

    assert result.code == 0
    assert "symbols  256 different bytes\n" in result.stdout
    assert "alphabet" not in result.stdout


def test_remarks_about_a_text_are_notes(charlm, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + b"a\r\nb\r\n" * 9)

    result = charlm("data", "info", "a.txt")

    assert result.code == 0
    assert result.stderr.splitlines() == [
        "charlm: note: a.txt: a byte order mark was dropped",
        "charlm: note: the text has carriage returns (\\r; Windows ends lines with \\r\\n), which are learned "
        "too; data.newlines=lf makes each line end a \\n",
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "core"),
    [
        (["info", "nope.txt"], 3, "nope.txt: no such file"),
        (["info", "a.txt", "--unit", "words"], 2, "--unit words: expected one of chars, bytes"),
        (["info", "a.txt", "--encoding", "klingon"], 2, "encoding: unknown 'klingon'"),
        (["info", "a.txt", "--encoding", "hex"], 2, "encoding: unknown 'hex'"),
        (["fetch", "shakespear"], 3, "shakespear: not a named text; use one of shakespeare"),
        (["fetch", "python-docs"], 3, "python-docs: built in"),
        (["add", "names", "nope.txt"], 3, "nope.txt: not found"),
        (["add", "names", "a.txt"], 3, "a.txt: is not names (228,145 bytes"),
        (["lst"], 2, "No such command 'lst'. Did you mean 'list'?"),
    ],
)
def test_mistakes_are_answered(charlm, tmp_path, monkeypatch, arguments, code, core):
    monkeypatch.setenv("CHARLM_DATA", str(tmp_path / "kept"))
    (tmp_path / "a.txt").write_text("hello")

    result = charlm("data", *arguments)

    assert (result.code, result.stdout) == (code, "")
    assert core in result.error
    assert not (tmp_path / "kept").exists()


def test_a_copy_of_ones_own_is_taken_after_the_check(charlm, tmp_path, monkeypatch):
    content = b"anna\nbob\n"
    pin = Pin("tiny.txt", len(content), hashlib.sha256(content).hexdigest())
    dataset = Dataset("tiny", "a tiny text", "none", "https://invalid.invalid/tiny.txt", pin)
    monkeypatch.setitem(DATASETS, "tiny", dataset)
    (tmp_path / "copy.txt").write_bytes(content)

    added = charlm("data", "add", "tiny", "copy.txt")
    fetched = charlm("data", "fetch", "tiny")

    assert (added.code, added.stdout) == (0, "data/tiny.txt\n")
    assert (fetched.code, fetched.stdout) == (0, "data/tiny.txt\n")
    assert (tmp_path / "data/tiny.txt").read_bytes() == content


def test_control_characters_in_a_file_name_are_escaped_in_what_goes_wrong(charlm):
    result = charlm("data", "info", "a\x1b]0;pwned\x07\nb.txt")

    assert result.code == 3
    assert result.stderr.count("\n") == 1
    assert result.error.startswith("a\\x1b]0;pwned\\x07\\nb.txt: no such file")


def test_the_files_of_a_folder_are_counted(charlm, tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / name).write_text(f"words {name}" * 20)

    result = charlm("data", "info", "texts")

    assert "files    3\n" in result.stdout
    assert (
        "data.joiner ('\\n') was put after 2 of 3 files, which did not end with it" in result.stderr
    )


NAMES = sorted(f"{a}{b}{c}" for a in "abcdefghij" for b in ("ora", "ina", "el") for c in "lmnopqrs")


def rows_of(result):
    return dict(line.split(maxsplit=1) for line in result.stdout.splitlines())


def test_a_list_is_described(charlm, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join([*NAMES, *NAMES[:60]]))

    result = charlm("data", "info", "names.txt", "data.records=lines")

    rows = rows_of(result)
    assert rows["records"] == "300, of 4.7 characters on average, 5 at most"
    assert rows["repeats"] == "20 % of the records repeat another"
    assert (rows["train"], rows["val"]) == (
        "270 records, to learn from",
        "30 records, to measure the loss on",
    )
    assert rows["symbols"] == "18 different characters"
    assert rows["alphabet"] == repr("abcdefghijlmnopqrs")
    assert result.stderr.splitlines() == [
        "charlm: note: 100 % of the records are in alphabetical order, in one stretch or more; keep "
        "data.shuffle=true, which mixes them before the end becomes the validation part"
    ]


def test_a_list_is_noticed_wherever_it_is_read(charlm, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    note = (
        "charlm: note: this looks like a list, an entry in each line, and the lines are in alphabetical "
        "order; data.records=lines makes each line a text of its own, with a beginning and an end"
    )

    told = charlm("data", "info", "names.txt")
    trained = charlm("train", "--config", "bigram", "data.source=names.txt", "train.max_steps=9")
    listed = charlm(
        *("train", "--config", "bigram", "data.source=names.txt", "train.max_steps=9"),
        *("data.records=lines", "data.shuffle=false"),
    )

    assert note in told.stderr.splitlines()
    assert note in trained.stderr.splitlines()
    assert (
        "data.shuffle=false makes the end of that order the validation part; use true"
        in listed.stderr
    )


def test_rare_and_unseen_symbols_are_told(charlm, tmp_path):
    many = "".join(chr(0x4E00 + i) for i in range(300))
    (tmp_path / "a.txt").write_text("the same again, " * 25_000 + many)
    rare, unseen = (
        "300 of 311 different characters occur",
        "300 characters stand in the validation part only ('一', '丁', '丂', '七', '丄', ...; ",
    )

    told = charlm("data", "info", "a.txt")
    joined = charlm("data", "info", "a.txt", "data.min_count=5")
    trained = charlm("train", "--config", "ngram", "data.source=a.txt", "model.order=2")

    for result in (told, trained):
        assert rare in result.stderr
        assert unseen in result.stderr
    assert rows_of(joined)["symbols"] == "11 different characters, and one symbol for 300 rare ones"
    assert joined.stderr == ""


def test_only_keys_of_a_text_can_be_set(charlm, tmp_path):
    (tmp_path / "a.txt").write_text("hello\n")

    for key in ("train.minutes=1", "data.source=b.txt"):
        result = charlm("data", "info", "a.txt", key)
        assert result.code == 2
        assert result.error.startswith(f"{key}: only keys of the section data can be set")
    assert charlm("data", "info", "a.txt", "data.records=words").code == 2


@pytest.mark.parametrize("keys", [(), ("data.unique=true",), ("data.test_fraction=0.2",)])
@pytest.mark.parametrize("repeats", [0, 1, 60])
def test_the_parts_of_a_list_are_those_of_training(charlm, tmp_path, keys, repeats):
    (tmp_path / "names.txt").write_text(
        "\n".join([*NAMES[:150], *NAMES[40:60], *["same"] * repeats])
    )

    info = rows_of(charlm("data", "info", "names.txt", "data.records=lines", *keys))
    planned = charlm(
        *("train", "--config", "bigram", "data.source=names.txt", "data.records=lines", *keys),
        "--dry-run",
    )

    said = re.search("names.txt: (.*) lines,", planned.stdout)[1]
    of_training = {name: count for count, name in map(str.split, said.split(", "))}
    assert {n: f"{count} records" for n, count in of_training.items()} == {
        name: info[name].split(", ")[0] for name in ("train", "val", "test") if name in info
    }


@pytest.mark.parametrize(
    ("content", "keys", "why"),
    [
        ("hello", [], "too short: of its 5 characters 1 make the val part, which needs 2"),
        ("only\n", ["data.records=lines"], "1 record, and its parts need 2; use a longer list"),
        (
            "same\n" * 9,
            ["data.records=lines"],
            "its 9 records are equal that none is left for the train part; use data.unique=true",
        ),
    ],
)
def test_a_text_that_training_would_refuse_is_noted(charlm, tmp_path, content, keys, why):
    (tmp_path / "a.txt").write_text(content)

    result = charlm("data", "info", "a.txt", *keys)

    assert result.code == 0
    assert "charlm: note: charlm train would refuse this text: a.txt: " in result.stderr
    assert why in result.stderr
    assert not {"train", "val"} & rows_of(result).keys()
    assert charlm("train", "--config", "bigram", "data.source=a.txt", *keys).code == 3


def test_one_rare_character_is_one(charlm, tmp_path):
    (tmp_path / "a.txt").write_text("ab\n" * 50 + "c")

    result = charlm("data", "info", "a.txt", "data.min_count=2")

    assert rows_of(result)["symbols"] == "3 different characters, and one symbol for 1 rare one"


def test_a_table_is_noted_by_all_that_read_it(charlm, tmp_path):
    (tmp_path / "a.csv").write_text(
        "id,name\n" + "".join(f"{i},{n}\n" for i, n in enumerate(NAMES))
    )

    for arguments in (
        ["data", "info", "a.csv"],
        ["baselines", "a.csv", "--max-order", "2"],
        ["train", "--config", "bigram", "data.source=a.csv", "--dry-run"],
    ):
        said = charlm(*arguments).stderr
        assert 'a.csv looks like a table with the columns "id", "name"' in said
        assert "looks like a list" not in said
