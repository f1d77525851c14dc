import io
import json
import math
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from charlm.cli import output
from charlm.coding import of_run, symbols
from charlm.coding.container import ContainerReader
from tests.conftest import TEXT

BYTES = b"to be, or not to be: that is the question.\r\n" * 20 + bytes(range(256))


@pytest.fixture(autouse=True)
def _short_fingerprints(monkeypatch):
    monkeypatch.setattr(symbols, "TRIED", 8)


@pytest.fixture
def text():
    """A file of any bytes."""
    Path("a.bin").write_bytes(BYTES)
    return Path("a.bin")


def test_a_file_is_compressed_and_restored(charlm, text):
    made = charlm("compress", text)
    text.rename("before")
    back = charlm("decompress", "a.bin.clm")

    size = Path("a.bin.clm").stat().st_size
    bits = 8 * size / len(BYTES)
    line = f"a.bin.clm: {len(BYTES):,} bytes compressed to {size:,}, {bits:.4f} bits per byte\n"
    assert (made.code, made.stdout) == (0, line)
    assert made.stderr.startswith(
        "checked by decoding; can be restored without a run, on any machine; "
    )
    assert back.stdout == f"a.bin: {len(BYTES):,} bytes, SHA-256 verified\n"
    assert text.read_bytes() == BYTES
    assert {path.name for path in Path().iterdir()} == {"before", "a.bin", "a.bin.clm"}


def test_an_empty_file_is_restored(charlm):
    Path("empty").touch()

    made = charlm("compress", "empty")
    back = charlm("decompress", "empty.clm", "-o", "again")

    assert made.stdout == f"empty.clm: 0 bytes compressed to {Path('empty.clm').stat().st_size}\n"
    assert (back.code, Path("again").read_bytes()) == (0, b"")


def test_json_has_the_sizes(charlm, text):
    made = json.loads(charlm("compress", text, "--no-check", "--json").stdout)
    back = json.loads(charlm("decompress", "a.bin.clm", "-o", "b", "--json").stdout)

    size = Path("a.bin.clm").stat().st_size
    assert (made["file"], made["out"], made["bytes"]) == ("a.bin", "a.bin.clm", len(BYTES))
    assert (made["compressed_bytes"], made["bits_per_byte"]) == (size, 8 * size / len(BYTES))
    assert (made["model"], made["run"], made["checked"]) == ("portable", None, False)
    assert back.keys() == {"file", "out", "bytes", "model", "seconds"}
    assert (back["out"], back["bytes"]) == ("b", len(BYTES))


class Bytes:
    """A stream of text that only its bytes matter of."""

    def __init__(self, data=b"", terminal=False):
        self.buffer = io.BytesIO(data)
        self.isatty = lambda: terminal
        self.write = lambda text: self.buffer.write(text.encode())
        self.flush = self.buffer.flush


def test_streams_are_compressed_and_restored(charlm, monkeypatch):
    def through(verb, data):
        monkeypatch.setattr(sys, "stdin", Bytes(data))
        monkeypatch.setattr(sys, "stdout", out := Bytes())
        assert charlm(verb, "-").code == 0
        return out.buffer.getvalue()

    assert through("decompress", through("compress", BYTES)) == BYTES


def test_a_terminal_is_sent_no_compressed_text(charlm, text, monkeypatch):
    monkeypatch.setattr(sys, "stdout", out := Bytes(terminal=True))

    result = charlm("compress", text, "-o", "-")

    assert result.code == 2
    assert "--out -: a terminal cannot show compressed text; name a file" in result.error
    assert out.buffer.getvalue() == b""


def test_a_file_that_was_not_named_is_never_replaced(charlm, refused, text):
    Path("a.bin.clm").write_bytes(b"mine")

    (line,) = refused(2, "compress", text)

    assert line == (
        "a.bin.clm: exists already; name another with --out, or replace it with --out a.bin.clm"
    )
    assert charlm("compress", text, "--out", "a.bin.clm").code == 0
    assert Path("a.bin.clm").read_bytes() != b"mine"
    (line,) = refused(2, "decompress", "a.bin.clm")
    assert line.startswith("a.bin: exists already; ")
    (line,) = refused(2, "decompress", "a.bin.clm", "-o", "./a.bin.clm")
    assert line == "--out ./a.bin.clm: it is the input file; name another"


def test_a_link_to_nothing_is_written_to(charlm, text):
    Path("link").symlink_to("new")

    assert charlm("compress", text, "--out", "link").code == 0

    assert Path("new").stat().st_size > 0
    assert Path("link").is_symlink()


@pytest.mark.parametrize(
    ("code", "arguments", "said"),
    [
        (3, ["compress", "none"], "none: cannot be read: No such file or directory; name a file"),
        (3, ["compress", "runs"], "runs: cannot be read: Is a directory; name a file"),
        (2, ["compress", "a.bin", "-o", ""], "--out: got an empty name; name a file, or - for"),
        (2, ["compress", "-", "--json"], "--json: the data already goes to standard output; name"),
        (5, ["compress", "a.bin", "-o", "none/a"], "none/a: No such file or directory"),
        (2, ["decompress", "a.bin"], "a.bin: its name does not end with .clm; name the result"),
        (3, ["decompress", "a.bin", "-o", "b"], "a.bin: is not a file that charlm compress"),
        (2, ["compress", "a.bin", "--set", "adapt.every=9"], "--set adapt.every=9: needs the"),
        (2, ["compress", "a.bin", "--set", "model.order=9"], "--set model.order=9: only keys of"),
        (4, ["compress", "a.bin", "--run", "gone"], "gone: not found; "),
    ],
)
def test_mistakes_are_one_line(refused, text, code, arguments, said):
    Path("runs").mkdir()

    (line,) = refused(code, *arguments)

    assert line.startswith(said)


def test_a_damaged_file_leaves_nothing_behind(charlm, refused, text):
    assert charlm("compress", text).code == 0
    place = Path("a.bin.clm")
    data = place.read_bytes()
    place.write_bytes(data[:-1])

    (line,) = refused(3, "decompress", place, "-o", "b")

    assert line == "a.bin.clm: is cut off in its end; get the whole file"
    place.write_bytes(data[:-99] + bytes(9) + data[-90:])
    (line,) = refused(3, "decompress", place, "-o", "b")
    assert line == "a.bin.clm: is damaged in block 1; get another copy of it"


def test_a_run_compresses_what_its_alphabet_has_and_the_rest(charlm, trained):
    """`quick` is known, `Ä` and a byte that is not UTF-8 are not."""
    text = TEXT[:60].encode() + "Ä".encode() + b"\xff" + TEXT[:30].encode()
    Path("b.txt").write_bytes(text)

    made = charlm("compress", "b.txt", "--run", "runs/tiny", "--json")
    back = charlm("decompress", "b.txt.clm", "-o", "again")

    facts = json.loads(made.stdout)
    assert (facts["model"], facts["run"], facts["step"]) == ("run", "tiny", 6)
    assert facts["symbols"] == 90
    assert 0 < facts["coded_nats"] < math.log(60)
    assert Path("again").read_bytes() == text
    assert back.stderr.startswith("restored with the run tiny, step 6; ")


def test_a_run_in_integers_compresses_for_any_machine(charlm, tiny):
    model = ["eval.baselines=false", "model.memory=8"]
    made = charlm(
        "train", "-c", "context-mixing", "data.source=text.txt", *model, "--out", "mix", "-q"
    )
    assert made.code == 0, made.stderr
    Path("b.txt").write_text(TEXT[:200] + "é")

    made = charlm("compress", "b.txt", "--run", "mix")
    charlm("decompress", "b.txt.clm", "--run", "mix", "-o", "again")

    assert Path("again").read_text() == TEXT[:200] + "é"
    assert Path("b.txt.clm").stat().st_size < 250
    assert "can be restored with the run mix, step 1, on any machine; " in made.stderr


MIXED = """\
data: {source: text.txt}
model:
  type: mixture
  combine: bitwise
  contexts: [lines]
  memory: 1
  experts: {counts: {model: {type: ngram, order: 5}}}
eval: {baselines: false}
run: {device: cpu, out: mixed}
"""


def test_a_bitwise_mixture_asks_its_experts(charlm, tiny):
    """Its own context knows nothing of the last characters."""
    Path("mixed.yaml").write_text(MIXED)
    assert charlm("train", "-c", "mixed.yaml", "-q").code == 0
    Path("b.txt").write_text(TEXT[:600])

    made = charlm("compress", "b.txt", "--run", "mixed", "--json")
    charlm("decompress", "b.txt.clm", "--run", "mixed", "-o", "again")
    scored = charlm("eval", "mixed", "--file", "b.txt", "--protocol", "adaptive", "--json")

    facts, score = json.loads(made.stdout), json.loads(scored.stdout)
    nats = score["loss_nats"] * score["chars"]
    assert facts["coded_nats"] * facts["symbols"] == pytest.approx(nats, abs=50)  # two words
    assert nats < 300
    assert Path("again").read_text() == TEXT[:600]
    header = ContainerReader(io.BytesIO(Path("b.txt.clm").read_bytes()), "b.txt.clm").header
    assert "torch" in header["needs"]  # so not any machine can restore it


@pytest.fixture
def of_tiny(charlm, trained):
    """A file that was compressed with a run."""
    Path("b.txt").write_text("the quick brown fox")
    made = charlm("compress", "b.txt", "--run", "tiny")
    assert "with the run tiny, step 6, on machines like this one; " in made.stderr
    return Path("b.txt.clm")


def test_a_run_is_counted_under_a_bar_before_it_decompresses(charlm, of_tiny, monkeypatch):
    prepared = []
    monkeypatch.setattr(output, "prepare", lambda model, should_stop: prepared.append(model))

    charlm("decompress", of_tiny, "-o", "b")

    assert prepared


def test_another_run_is_refused(charlm, refused, of_tiny, trained):
    again = charlm("train", "-c", "tiny.yaml", "--out", "other", "--seed", "7", "-q")
    assert again.code == 0, again.stderr

    (line,) = refused(4, "decompress", of_tiny, "-o", "b", "--run", "other")

    assert line == (
        "other: is not the run 'tiny', step 6, that b.txt.clm was compressed with; "
        "name that run with --run"
    )


def test_a_run_that_is_not_there_is_named(refused, of_tiny, trained):
    trained.rename("elsewhere")

    (line,) = refused(4, "decompress", of_tiny, "-o", "b")

    assert line.startswith("b.txt.clm: was compressed with the run 'tiny', which is not in runs/; ")


def test_a_portable_file_needs_no_run(charlm, refused, text):
    assert charlm("compress", text).code == 0

    (line,) = refused(2, "decompress", "a.bin.clm", "-o", "b", "--run", "runs/x")

    assert line == "--run runs/x: a.bin.clm was compressed without a run; leave it out"


@pytest.mark.parametrize(
    ("name", "mend"),
    [("torch", "install torch=="), ("cpu", "decompress it on a machine like that one")],
)
def test_another_release_or_processor_is_refused_by_name(refused, of_tiny, monkeypatch, name, mend):
    here = of_run.needs(False)
    monkeypatch.setattr(of_run, "needs", lambda in_integers: here | {name: "another"})

    (line,) = refused(5, "decompress", of_tiny, "-o", "b")

    assert line.startswith(
        f"b.txt.clm: was compressed with {name} {here[name]!r}, but here it is 'another'"
    )
    assert mend in line


def test_other_bits_are_refused_before_anything_is_decoded(refused, of_tiny, monkeypatch):
    monkeypatch.setattr(symbols.Symbols, "fingerprint", lambda *_: "0" * 16)

    (line,) = refused(5, "decompress", of_tiny, "-o", "b")

    assert line.startswith("b.txt.clm: its run computes other bits here (")


@pytest.mark.slow  # each starts another process, which imports torch
@pytest.mark.skipif(platform.machine() != "x86_64", reason="variables of x86-64's libraries")
@pytest.mark.parametrize(
    ("variables", "code", "said"),
    [
        ({"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "2"}, 0, "SHA-256 verified"),
        ({"ATEN_CPU_CAPABILITY": "default"}, 5, "was compressed with cpu '"),
        ({"OPENBLAS_CORETYPE": "Prescott"}, 5, "was compressed with blas '"),
    ],
)
def test_another_process_computes_the_same_bits_or_refuses(
    charlm, trained, monkeypatch, variables, code, said
):
    monkeypatch.setattr(symbols, "TRIED", 512)
    Path("b.txt").write_text(TEXT[:500])
    assert charlm("compress", "b.txt", "--run", "tiny").code == 0

    command = [sys.executable, "-m", "charlm", "decompress", "b.txt.clm", "-o", "again"]
    result = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, check=False
    )

    assert result.returncode == code, result.stderr
    assert said in result.stdout + result.stderr
    assert Path("again").exists() == (code == 0)
