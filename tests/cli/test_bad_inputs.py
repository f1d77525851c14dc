"""What users get wrong, row by row of the bad-input table: its number stands beside each case.

Every answer is an exit code and one line that says what, where and how to mend it; nothing is left
behind, and no traceback is shown.
"""

import builtins
import errno
import gzip
import io
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from charlm.config import memory, size
from charlm.errors import MachineError, number_of
from charlm.evaluation import baselines
from charlm.storage import folder_lock
from charlm.text import Batches, batches
from tests.conftest import TEXT

TRAIN = ("train", "--config", "tiny.yaml")
MODEL = "model: {type: bigram, block_size: 8}\n"
MIXED = "mixture, experts: {a: {model: {type: ngram}}}"
MIXTURE = "model: {type: mixture,\n experts: {\n"


@pytest.fixture
def refused_file(refused):
    """Train from a configuration that must be refused with one line; return the line."""

    def command(content: str | bytes) -> str:
        data = content.encode() if isinstance(content, str) else content
        Path("a.yaml").write_bytes(data)
        (line,) = refused(2, "train", "--config", "a.yaml")
        assert line.startswith("a.yaml")
        assert len(line) <= 200
        return line

    return command


@pytest.fixture
def refused_text(refused):
    """Train on a text that must be refused with one line; return the line."""

    def command(content: str | bytes, *overrides: str, code: int = 3) -> str:
        Path("bad.txt").write_bytes(content.encode() if isinstance(content, str) else content)
        (line,) = refused(code, *TRAIN, "data.source=bad.txt", *overrides)
        assert line.startswith("bad.txt: ")
        assert len(line) <= 200
        return line

    return command


def test_row_1_a_missing_configuration_lists_what_is_near(refused):
    (line,) = refused(2, "train", "--config", "tini.yaml")

    assert line.startswith("tini.yaml: no such file or preset; did you mean 'tiny.yaml'?")
    assert "YAML files there: tiny.yaml" in line


def test_row_2_a_folder_is_no_configuration(refused):
    Path("folder.yaml").mkdir()

    (line,) = refused(2, "train", "--config", "folder.yaml")

    assert line == "folder.yaml: is a directory; name a YAML file or a preset"


@pytest.mark.parametrize(
    ("content", "core"),
    [
        pytest.param("", "empty; write at least 'model: {type: bigram}'", id="3-empty"),
        pytest.param("# nothing yet\n", "empty; write at least", id="3-only-remarks"),
        pytest.param(MODEL + "train: [1\n", "a.yaml:3:1: ", id="4-syntax"),
        pytest.param(MODEL + "\ttrain: 1\n", "a.yaml:2:1: ", id="4-tab"),
        pytest.param(
            "- model\n", "expected a mapping such as 'model: ...', got a list", id="5-list"
        ),
        pytest.param("gpt", "expected a mapping such as 'model: ...', got a single", id="5-scalar"),
        pytest.param(
            MODEL + "train:\n  max_stepps: 3\n",
            "a.yaml:3: train.max_stepps: unknown key; did you mean 'max_steps'?",
            id="6-unknown-key",
        ),
        pytest.param(
            MODEL + "train: {}\n" + "model: {type: gpt}\n",
            "model is defined on lines 1 and 3",
            id="7-repeated-key",
        ),
        pytest.param(
            MODEL + "train: {learning_rate: fast}",
            "a.yaml:2: train.learning_rate: expected a number, got 'fast'",
            id="8-word-for-number",
        ),
        pytest.param(
            "model: {type: gpt, dropout: no}",
            "model.dropout: expected a number, got a boolean",
            id="9-boolean",
        ),
        pytest.param(
            MODEL + "train: {max_steps: 1.5}",
            "train.max_steps: expected an integer, got '1.5'",
            id="10-fraction",
        ),
        pytest.param(
            MODEL + "train: {max_steps: [1]}", "expected an integer, got ['1']", id="10-list"
        ),
        pytest.param(MODEL + "train: {max_steps: }", "expected an integer, got null", id="10-null"),
        pytest.param("model: {type: gpt, n_layer: 0}", "must be at least 1 (", id="11-zero"),
        pytest.param("model: {type: gpt, n_embd: -8}", "must be at least 1 (", id="11-negative"),
        pytest.param(
            "model: {type: gpt, dropout: -0.1}", "must be at least 0 and below 1", id="12-below"
        ),
        pytest.param(
            "model: {type: gpt, dropout: 1.0}", "must be at least 0 and below 1", id="12-above"
        ),
        pytest.param(
            MODEL + "train: {learning_rate: .nan}", "expected a finite number", id="13-nan"
        ),
        pytest.param(
            MODEL + "train: {learning_rate: inf}", "expected a finite number", id="13-inf"
        ),
        pytest.param(MODEL + "train: {learning_rate: -1}", "must be above 0 (", id="13-negative"),
        pytest.param(
            "model: {type: gpt, n_embd: 30, n_head: 4}",
            "n_head: 4 does not divide n_embd 30; choose a divisor such as 3 or 5",
            id="15-heads",
        ),
        pytest.param("model: {type: ngram, order: 0}", "at least 1 and at most 32", id="ngram-0"),
        pytest.param(
            "model: {type: ngram, block_size: 99999999999999}",
            "block_size: must be at least 1 and at most 16384 (characters in a window",
            id="ngram-block",
        ),
        pytest.param(
            "model: {type: mixture, block_size: 16385, experts: {a: {model: {type: ngram}}}}",
            "block_size: must be at least 1 and at most 16384 (characters in a window",
            id="mixture-block",
        ),
        pytest.param(
            "model: {type: mixture, tune_fraction: 0, experts: {a: {model: {type: ngram}}}}",
            "(share of the training part, at its end, used to fit the weights and to train no expert), "
            "got",
            id="mixture-tune-0",
        ),
        pytest.param(
            "model: {type: ngram, smoothing: kneser}",
            "'kneser' is not one of kneser-ney, witten-bell or add-k",
            id="ngram-smoothing",
        ),
        pytest.param("model: {type: ngram, add_k: 0}", "add_k: must be at least", id="ngram-add-0"),
        pytest.param(
            "model: {type: ngram, min_count: 0}", "must be at least 1 (leave out", id="ngram-rare"
        ),
        pytest.param(
            "model: {type: ngram, last_chars: 6}",
            "last_chars 6 is less than order 7",
            id="ngram-end",
        ),
        pytest.param(
            "model: {type: ngram, order: auto, last_chars: 19}",
            "last_chars 19 is fewer than the 20 that the choice of an order needs",
            id="ngram-end-auto",
        ),
        pytest.param(
            "model: {type: ngram, order: best}",
            "model.order: expected an integer or auto, got 'best'",
            id="ngram-order-word",
        ),
        pytest.param(
            MODEL + "train: {optimizer: muon}",
            "muon needs a hidden 2-D matrix and model 'bigram' has none; use adamw",
            id="17-muon",
        ),
        pytest.param(
            MODEL + "train: {gradients: by_hand}\nrun: {compile: true}\n",
            "run.compile: true is for autograd, which train.gradients: by_hand",
            id="17-by-hand-compiled",
        ),
        pytest.param(
            "model: {type: ngram}\ntrain: {gradients: by_hand}",
            "a.yaml:2: train.gradients: model 'ngram' is counted and has no gradients",
            id="17-by-hand-counted",
        ),
        pytest.param("model: {type: ngram, order: 40}", "at least 1 and at most 32", id="11-order"),
        pytest.param(
            MIXTURE + "a: {run: r, model: {type: ngram, ordr: 3}}}}",
            "a.yaml:3: model.experts.a.model.ordr: unknown key; did you mean 'order'?",
            id="6-key-of-an-expert",
        ),
        pytest.param(
            MIXTURE + "a: {model: {type: mixture}}}}",
            "model.experts.a.model.type: unknown type 'mixture'; one of bigram, averaging",
            id="6-mixture-in-a-mixture",
        ),
        pytest.param(MIXTURE + "a.b: {run: r}}}", "model.experts.a.b: not a name", id="6-name"),
        pytest.param(MIXTURE + "a/b: {run: r}}}", "model.experts.a/b: not a name", id="6-slash"),
        pytest.param("model: {type: mixture}", "name at least one expert, such as", id="5-experts"),
        pytest.param(MIXTURE + "}}", "name at least one", id="5-no-expert"),
        pytest.param(
            MODEL + "train: {warmup_steps: 10, max_steps: 5}",
            "warmup_steps 10 is more than max_steps 5",
            id="18-warmup",
        ),
        pytest.param(
            MODEL + "train: {min_lr: 1, learning_rate: 0.5}",
            "min_lr 1.0 is more than learning_rate 0.5",
            id="18-min-lr",
        ),
        pytest.param(
            "model: !!python/object/apply:os.mkdir [pwned]",
            "a.yaml:1: tag '!!python/object/apply:os.mkdir' is not allowed",
            id="19-python-tag",
        ),
        pytest.param(
            "a: &a [x, x]\n"
            + "".join(
                f"{c}: &{c} [*{p}, *{p}, *{p}]\n" for p, c in itertools.pairwise("abcdefghijk")
            ),
            "aliases expand to more than 10,000 values",
            id="20-alias-bomb",
        ),
        pytest.param("model: " + "{a: " * 101, "nested deeper than 100 levels", id="20-depth"),
        pytest.param("# " + "x" * (1 << 20), "more than 1,048,576 bytes (1 MiB)", id="20-size"),
        pytest.param(b"model: \xff", "not UTF-8 at byte 7 (0xff)", id="21-not-utf-8"),
        pytest.param(b"mo\0del: 1", "a NUL at byte 2", id="21-nul"),
    ],
)
def test_a_wrong_configuration_is_refused(refused_file, content, core):
    assert core in refused_file(content)


def test_row_8_a_float_without_a_point_is_a_number(charlm, tiny):
    Path("a.yaml").write_text(MODEL + "train: {learning_rate: 2e-3}")

    result = charlm("train", "--config", "a.yaml", "--print-config")

    assert result.code == 0
    assert "learning_rate: 0.002\n" in result.stdout


@pytest.mark.parametrize("layers", ["1000000000", "1000000000000"])
def test_row_14_a_model_that_cannot_fit_says_what_it_needs_and_what_there_is(refused, layers):
    (line,) = refused(2, *TRAIN, f"model.n_layer={layers}")

    assert f"this machine has {memory.human_bytes(memory.physical_bytes())}" in line
    assert "training needs about" in line
    assert "lower n_layer" in line


@pytest.mark.parametrize(
    ("override", "of_file"),
    [
        ("train.max_stepps=3", "unknown key; did you mean 'max_steps'?"),
        ("train.max_steps=1.5", "expected an integer, got '1.5'"),
        ("model.n_layer=0", "must be at least 1 (blocks in the stack), got 0"),
    ],
)
def test_row_22_a_wrong_override_reads_like_a_wrong_key_of_a_file(refused, override, of_file):
    assert refused(2, *TRAIN, override) == [f"{override}: {of_file}"]


def test_several_problems_are_a_line_each(refused):
    lines = refused(2, *TRAIN, "lr=1", "train.max_steps=x", "model.n_layer=0", "oops")

    assert len(lines) == 4


@pytest.mark.parametrize(
    ("present", "missing"),
    [
        ({"RANK": "0"}, "WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "1"}, "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, "MASTER_ADDR, MASTER_PORT"),
    ],
)
def test_row_23_a_half_set_launch_names_what_is_missing(refused, monkeypatch, present, missing):
    for name, value in present.items():
        monkeypatch.setenv(name, value)

    (line,) = refused(2, *TRAIN)

    assert f"{', '.join(present)} set but not {missing};" in line


def test_row_23_more_processes_than_the_configuration_is_for_are_refused(refused, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")

    line = "train.parallel: none trains in one process, and 2 were started; set it to ddp or"
    assert refused(2, *TRAIN) == [f"{line} fsdp2, or start one"]


def test_row_69_processes_that_do_not_divide_the_micro_batches_are_told_which_do(
    refused, monkeypatch
):
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    keys = ("train.parallel=ddp", "train.micro_batch_size=2", "train.batch_size=12")

    line = "2 processes: cannot share 6 micro-batches in a step; start 1, 3 or 6 of them, or change"
    assert refused(2, *TRAIN, *keys) == [f"{line} train.micro_batch_size"]
    line = "2 processes: cannot share 1 micro-batch in a step; make train.micro_batch_size smaller than"
    assert refused(2, *TRAIN, keys[0]) == [f"{line} train.batch_size"]


@pytest.mark.parametrize(
    ("rank", "size", "wrong"),
    [("2", "2", "RANK is 2, and WORLD_SIZE 2"), ("one", "2", "RANK is 'one'"), ("0", "0", "'0'")],
)
def test_row_23_numbers_that_no_launch_has_are_refused(refused, monkeypatch, rank, size, wrong):
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)

    (line,) = refused(2, *TRAIN)

    assert wrong in line


def test_row_24_a_missing_text_lists_the_named_ones(refused):
    (line,) = refused(3, *TRAIN, "data.source=nope.txt")
    (typo,) = refused(3, *TRAIN, "data.source=shakespear")

    assert line.startswith("nope.txt: no such file or named text")
    assert "did you mean 'shakespeare'?" in typo


def test_row_25_a_glob_without_a_match_names_pattern_and_folder(refused, tmp_path):
    (line,) = refused(3, *TRAIN, "data.source=*.poem")

    assert line.startswith(f"*.poem: matches no file in {tmp_path}")


def test_row_26_an_empty_text_is_refused(refused_text):
    assert "empty (0 bytes)" in refused_text("")


def test_row_27_a_part_that_is_too_short_is_answered_with_two_ways_on(refused_text):
    line = refused_text("abcdefgh" * 10)

    assert "the val part has 8 characters and needs 9" in line
    mend = "lower model.block_size below 8, use a longer text, or set data.val_fraction=0.11"
    assert line.endswith(f"; {mend}")


@pytest.mark.parametrize("model", ["ngram", "bigram, block_size: 1", MIXED])
@pytest.mark.parametrize("text", ["t", "th", "the", "then"])
def test_a_text_of_a_few_characters_is_said_to_be_too_short(refused, model, text):
    Path("a.yaml").write_text(f"data: {{source: s.txt}}\nmodel: {{type: {model}}}\n")
    Path("s.txt").write_text(text)

    (line,) = refused(3, "train", "--config", "a.yaml")

    part = "train" if len(text) < 3 else "val"
    mend = (
        ", or set data.val_fraction=0.26" if len(text) == 4 else ""
    )  # of less, no share is enough
    assert line == (
        f"s.txt: too short: of its {number_of(len(text), 'character')} {min(len(text) - 1, 1)} make the "
        f"{part} part, which needs 2; use a longer text{mend}"
    )


def test_an_order_longer_than_the_text_is_refused(refused):
    Path("a.yaml").write_text("data: {source: s.txt, val_fraction: 0}\nmodel: {type: ngram}\n")
    Path("s.txt").write_text("six of")

    (line,) = refused(3, "train", "--config", "a.yaml")

    assert line.startswith("model.order: ")
    assert "s.txt" in line
    assert "lower it or use a longer text" in line


def mixture(experts: str, more: str = "") -> str:
    """Write a configuration of a mixture; return its name."""
    Path("mix.yaml").write_text(
        f"data: {{source: text.txt}}\nmodel: {{type: mixture, experts: {{{experts}}}{more}}}\n"
    )
    return "mix.yaml"


def test_a_run_that_cannot_be_an_expert_is_refused(charlm, trained, refused):
    Path("other.txt").write_text(TEXT.replace("fox", "f\u00f6x"))
    Path("n.yaml").write_text("data: {source: other.txt}\nmodel: {type: ngram, order: 2}\n")
    of_other = ("train", "-c", mixture("a: {run: runs/other}"), "data.source=other.txt")
    assert charlm("train", "-c", "n.yaml", "--out", "runs/other", "-q").code == 0
    assert charlm("train", "-c", "n.yaml", "--out", "runs/bytes", "-q", "data.unit=bytes").code == 0
    assert charlm(*of_other, "--out", "runs/joined", "-q").code == 0
    shutil.copytree(trained, "runs/empty", ignore=shutil.ignore_patterns("step-*"))
    shutil.copytree(trained, "runs/damaged")
    for weights in Path("runs/damaged").rglob("model.safetensors"):
        weights.write_bytes(b"broken")

    for answer in (
        "nowhere/a: not found; train one first",
        "runs: is not a run (no config.yaml)",
        "runs/empty: no checkpoint 'best'; saved steps: none yet",
        "runs/damaged: checkpoints/step-6/model.safetensors: 6 bytes, its manifest",
        "runs/bytes: is a model of bytes, this text is read as chars; set data.unit",
        "runs/joined: is a mixture itself; name its experts",
    ):
        run = answer.split(":")[0]
        (line,) = refused(4, "train", "-c", mixture(f"old: {{run: {run}}}"), "--out", "new")

        answer = answer.replace("damaged: ", "damaged/")  # the file that is broken is named
        assert line.startswith(f"model.experts.old.run: {answer}")


def test_a_model_beside_a_run_must_be_that_of_the_run(trained, refused):
    (line,) = refused(4, "train", "-c", mixture("old: {run: runs/tiny, model: {type: bigram}}"))

    assert line == (
        "model.experts.old.model: runs/tiny has another; leave model out, it comes from the run"
    )


@pytest.mark.parametrize(
    ("expert", "fraction", "answer"),
    [
        ("type: ngram", 1e-4, "model.tune_fraction: of the 2,322 characters to train on in "),
        ("type: ngram", 0.998, "model.experts.a.model.order: needs 7 characters to train on"),
        ("type: gpt", 0.98, "model.experts.a.model.block_size: needs 65 characters to train on"),
    ],
)
def test_a_slice_that_leaves_too_little_is_refused(refused, expert, fraction, answer):
    name = mixture(f"a: {{model: {{{expert}}}}}", f", tune_fraction: {fraction}")

    (line,) = refused(3, "train", "-c", name)

    assert line.startswith(answer)
    assert "text.txt" in line
    assert line.endswith("use a longer text")


def test_row_28_a_single_symbol_is_a_note(charlm, tiny):
    Path("text.txt").write_text("a" * 200)

    result = charlm(*TRAIN)

    assert result.code == 0
    assert "charlm: note: only one distinct symbol" in result.stderr


def test_row_29_bytes_that_are_not_utf_8_are_placed(refused_text):
    line = refused_text(b"one\ntwo \xe9t\xe9" + b"x" * 100)

    assert "not UTF-8 at byte 8 (0xe9), line 2" in line
    assert "data.encoding=latin-1" in line
    assert "data.unit=bytes" in line


def _zip() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("a.txt", TEXT)
    return packed.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        pytest.param(gzip.compress(gzip.compress(TEXT.encode())), "gzip", id="gzip twice"),
        pytest.param(_zip(), "zip", id="zip"),
        pytest.param(b"%PDF-1.7\n" + TEXT.encode(), "PDF", id="pdf"),
        pytest.param(b"ab\0\0" * 100, "binary (200 NULs", id="nul"),
    ],
)
def test_row_30_what_is_no_text_is_named(refused_text, content, kind):
    line = refused_text(content)

    assert f"looks like {kind}" in line or f"looks {kind}" in line
    assert "data.unit=bytes" in line


def test_row_31_utf_16_is_recognised_and_then_read(refused_text, charlm):
    line = refused_text(TEXT.encode("utf-16"))

    result = charlm(*TRAIN, "data.source=bad.txt", "data.encoding=utf-16")

    assert "use data.encoding=utf-16" in line
    assert result.code == 0


def test_row_31_utf_16_without_its_mark_is_refused(refused_text):
    assert "UTF-16" in refused_text(TEXT, "data.encoding=utf-16")


def test_row_31_a_byte_order_mark_is_dropped_with_a_note(charlm, tiny):
    Path("text.txt").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())

    result = charlm(*TRAIN, "--out", "run")

    assert result.code == 0
    assert "charlm: note: text.txt: a byte order mark was dropped" in result.stderr
    assert "\\ufeff" not in Path("run/tokenizer.json").read_text()


@pytest.mark.parametrize("ending", ["\r\n", "\r"])
def test_row_32_carriage_returns_are_kept_with_a_note(charlm, tiny, ending):
    Path("text.txt").write_bytes(TEXT.replace("\n", ending).encode())

    result = charlm(*TRAIN, "--out", "run")

    assert result.code == 0
    assert "charlm: note: the text has carriage returns (\\r; Windows ends" in result.stderr
    assert "\\r" in Path("run/tokenizer.json").read_text()


def test_row_33_too_many_symbols_are_counted(refused_text):
    line = refused_text("abcdefghij" * 30 + "é", "data.max_vocab=5")

    assert "11 distinct characters (rarest: 'é' (1x)" in line
    assert "; set data.max_vocab=11, data.min_count=2 or data.unit=bytes" in line


@pytest.fixture
def forbid(monkeypatch):
    """Let the operating system refuse a call for paths that contain a word."""

    def forbidding(place, name: str, word: str, code: int) -> None:
        allowed = getattr(place, name)

        def call(path, *arguments, **named):
            if word in str(path):
                raise OSError(code, os.strerror(code), str(path))
            return allowed(path, *arguments, **named)

        monkeypatch.setattr(place, name, call)

    return forbidding


def test_row_34_a_text_that_may_not_be_read_names_path_and_user(refused, forbid):
    forbid(io, "FileIO", "text.txt", errno.EACCES)

    (line,) = refused(5, *TRAIN)

    assert line.startswith("text.txt: Permission denied; user '")


def test_row_34_a_configuration_that_may_not_be_read_is_refused(refused, forbid):
    forbid(Path, "open", "tiny.yaml", errno.EACCES)

    (line,) = refused(2, *TRAIN)

    assert line.startswith("tiny.yaml: cannot be read: Permission denied")


def test_row_34_a_prompt_that_may_not_be_read_names_path_and_user(refused, forbid, trained):
    forbid(builtins, "open", "prompt.txt", errno.EACCES)

    (line,) = refused(5, *sample(trained, "--prompt-file", "prompt.txt"))

    assert line.startswith("prompt.txt: Permission denied; user '")


def test_row_35_a_changed_text_is_refused_until_allowed(charlm, trained):
    Path("text.txt").write_text(TEXT.replace("fox", "cat"))
    resume = ("train", "--resume", "--out", trained, "train.max_steps=8")

    refusal = charlm(*resume)
    allowed = charlm(*resume, "--allow-new-data")

    assert refusal.code == 3
    assert "text.txt: changed since this run began (SHA-256 " in refusal.error
    assert refusal.error.endswith("go on with --allow-new-data")
    assert allowed.code == 0
    assert "charlm: note: text.txt: changed since this run began" in allowed.stderr


def test_row_36_a_large_text_streams(charlm, trained, tiny):
    large = 48 << 20
    with Path("text.txt").open("wb") as file:
        for _ in range(large // (1 << 20)):
            file.write(TEXT[:1024].encode() * 1024)
    # What is imported once (`trained` did it) is no part of it.
    changes = ("train.max_steps=0", "train.warmup_steps=0", "eval.max_chars=100")
    # Of any text the baselines read so many characters and no more. This one repeats itself, so its
    # n-grams are few: memory is taken by sorting where they begin and by looking up what is scored.
    counting = 48 * baselines.MAX_COUNTED + 160 * baselines.MAX_SCORED

    for switched, bound in (("false", large // 2 + (16 << 20)), ("true", counting)):
        tracemalloc.start()
        result = charlm(*TRAIN, *changes, f"eval.baselines={switched}", "-q")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert result.code == 0
        assert ("reached" in result.stdout) == (switched == "true")
        assert peak < bound


def test_row_37_a_pipe_or_a_device_is_no_text(refused):
    os.mkfifo("pipe")

    assert refused(3, *TRAIN, "data.source=pipe")[0].startswith("pipe: not a regular file")
    assert refused(3, *TRAIN, "data.source=/dev/null")[0].startswith("/dev/null: not a regular")


RUN = Path("runs/tiny")
RESUME = ("train", "--resume", "--out", RUN)


def test_row_38_a_text_that_was_cut_short_is_refused(trained, refused):
    for left in (2579, 0):
        os.truncate(RUN / "tokens/ids.bin", left)

        for command in (("eval", "--run", RUN), RESUME):
            (line,) = refused(3, *command)
            assert line == (
                f"runs/tiny/tokens/ids.bin: truncated, {left:,} of 2,580 bytes; restore it or start "
                "a new run"
            )


@pytest.mark.parametrize(("held", "last"), [(0, 5), (batches.HELD, 6)])
def test_row_39_a_text_that_shrinks_while_it_is_trained_on_leaves_a_saved_step(
    charlm, tiny, monkeypatch, held, last
):
    """Batches of a small text are cut from a copy in memory: the next evaluation notices."""
    monkeypatch.setattr(batches, "HELD", held)
    ids, get = Path("run/tokens/ids.bin"), Batches.get

    def shrinking(self, step, *rest):
        if step == 5:
            os.truncate(ids, 9)
        return get(self, step, *rest)

    monkeypatch.setattr(Batches, "get", shrinking)
    result = charlm(*TRAIN, "--out", "run", "-q", "eval.baselines=false")

    assert result.code == 3
    assert result.error.startswith("run/tokens/ids.bin: cut short while in use: ")
    assert result.error.endswith(f"; step {last} is saved; restore it or start a new run")
    assert len(result.error) <= 200
    assert charlm("sample", "--run", "run", "--checkpoint", last).code == 0

    monkeypatch.setattr(Batches, "get", get)
    assert charlm("train", "--resume", "--out", "run").code == 3
    shutil.rmtree("run/tokens")
    assert charlm(*TRAIN, "--out", "whole", "-q").code == 0
    shutil.copytree("whole/tokens", "run/tokens")
    assert charlm("train", "--resume", "--out", "run").code == 0


def sample(trained: Path, *arguments: object) -> tuple[object, ...]:
    return ("sample", "--run", trained, "--max-new-chars", 8, "--seed", 1, *arguments)


def test_row_40_unknown_characters_are_listed_with_code_and_position(charlm, trained, refused):
    (line,) = refused(3, *sample(trained, "--prompt", "the é ☃"))

    assert "character 5 'é' (U+00E9), character 7 '☃' (U+2603)" in line
    assert line.endswith("or --unknown skip to leave such characters out")


def test_row_40_unknown_characters_can_be_skipped(charlm, trained):
    skipped = charlm(*sample(trained, "--prompt", "théé", "--unknown", "skip", "--no-echo"))

    assert skipped.code == 0
    assert skipped.stdout == charlm(*sample(trained, "--prompt", "th", "--no-echo")).stdout


def test_row_41_an_empty_prompt_starts_from_a_newline(charlm, trained):
    empty = charlm(*sample(trained, "--prompt", ""))
    newline = charlm(*sample(trained, "--prompt", "\n", "--no-echo"))

    assert (empty.code, empty.stderr) == (0, "")
    assert empty.stdout == newline.stdout


def test_row_42_of_a_long_prompt_the_last_block_counts_with_a_note(charlm, trained):
    long = charlm(*sample(trained, "--prompt", "the lazy dog over the quick", "--no-echo"))
    last = charlm(*sample(trained, "--prompt", "he quick", "--no-echo"))

    assert long.code == 0
    assert long.stderr == (
        "charlm: note: the prompt has 27 characters; the model sees only the last 8\n"
    )
    assert (long.stdout, last.stderr) == (last.stdout, "")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no such device on this system")
def test_a_prompt_that_never_ends_is_refused(trained, refused):
    (line,) = refused(3, *sample(trained, "--prompt-file", "/dev/zero"))

    assert line == "/dev/zero: longer than 64 MiB; pass only its end, since a model sees no more"


def test_row_43_a_prompt_that_is_not_utf_8_is_placed(trained, refused):
    Path("prompt.txt").write_bytes(b"the \xff")

    from_shell = refused(3, *sample(trained, "--prompt", "fox\udcff"))
    from_file = refused(3, *sample(trained, "--prompt-file", "prompt.txt"))

    assert from_shell[0].startswith("--prompt: not UTF-8 at byte 3 (0xff)")
    assert from_file[0].startswith("prompt.txt: not UTF-8 at byte 4 (0xff)")


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("--temperature", -1, "must be at least 0 (divides the logits; 0 = greedy)"),
        ("--temperature", "nan", "expected a finite number, got 'nan'"),
        ("--temperature", "inf", "expected a finite number, got 'inf'"),
        ("--temperature", "warm", "warm: expected a number"),
        ("--top-p", 1.5, "must be above 0 and at most 1"),
        ("--top-p", 0, "must be above 0 and at most 1"),
        ("--top-p", "nan", "expected a finite number, got 'nan'"),
        ("--top-k", 0, "must be at least 1"),
        ("--top-k", -3, "must be at least 1"),
        ("--top-k", 1.5, ": expected a whole number"),
        ("--max-new-chars", -1, "must be at least 0 (characters to sample), got -1"),
        ("--max-new-chars", 2.5, ": expected a whole number"),
        ("--max-new-chars", "many", ": expected a whole number"),
        ("-n", 0, "of at least 1"),
        ("--seed", -1, "use a number from 0 to 2^62"),
    ],
)
def test_rows_44_and_45_sampling_out_of_range_is_refused(trained, refused, option, value, allowed):
    (line,) = refused(2, "sample", "--run", trained, option, value)

    assert len(f"charlm: error: {line}") <= 200
    assert allowed in line
    assert option.strip("-").replace("-", "_") in line.replace("-", "_")


def test_row_46_a_closed_pipe_ends_in_silence(trained):
    process = subprocess.Popen(
        [sys.executable, "-m", "charlm", "sample", "--max-new-chars", "1000000", "--seed", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    _, errors = process.communicate(timeout=200)

    assert (process.returncode, errors) == (141, b"")


LONG = ["train.max_steps=1000000000", "run.compile=false"]


def test_an_interrupted_training_saves_its_step_and_says_how_to_go_on(tiny):
    process = subprocess.Popen(
        [sys.executable, "-m", "charlm", *TRAIN, "--out", "run", *LONG],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step") and not line.startswith("step          0"):
            break
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=200)

    assert (process.returncode, printed) == (130, "")
    stopped = errors.splitlines()[-1]
    step = int(stopped.split()[3].rstrip(","))
    assert stopped == (
        f"stopped at step {step}, saved; continue with: charlm train --resume --out run"
    )
    assert Path(f"run/checkpoints/step-{step}/MANIFEST.json").is_file()


def test_row_47_a_missing_checkpoint_lists_the_steps_there_are(trained, refused):
    (line,) = refused(4, *sample(trained, "--checkpoint", 99))

    assert line.endswith("no checkpoint '99'; saved steps: 3, 6")


@pytest.mark.parametrize("verb", ["sample", "eval"])
def test_row_47_a_missing_run_lists_the_runs_there_are(trained, refused, verb):
    (line,) = refused(4, verb, "--run", "runs/other")

    assert line == "runs/other: not found; runs there: runs/tiny"


@pytest.mark.parametrize("name", ["cuda:9", "cuda:1234"])
def test_row_62_an_absent_device_lists_those_there_are(trained, refused, name):
    key, option = f"run.device={name}", f"--device {name}"
    for command, spelled in (((*TRAIN, key), key), (("sample", *option.split()), option)):
        (line,) = refused(5, *command)

        assert line.startswith(f"{spelled}: not available; this machine has cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda0", "CPU", ""])
def test_row_62_an_unknown_device_is_refused(trained, refused, name):
    for verb in (TRAIN, ("sample",), ("eval",)):
        (line,) = refused(2, *verb, "--device", name)

        assert f"unknown device {name!r}; use auto, cpu" in line


def test_row_63_a_folder_that_holds_a_run_is_left_alone(trained, refused):
    (line,) = refused(2, *TRAIN, "--out", trained)

    assert line == f"{trained}: holds a run; continue it with --resume, or choose another --out"


def test_row_63_a_folder_with_something_else_is_left_alone(refused):
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")

    assert "mine: is not empty and not a run" in refused(2, *TRAIN, "--out", "mine")[0]


@pytest.mark.parametrize(
    ("code", "core"),
    [
        (errno.EACCES, "Permission denied; user '"),
        (errno.EROFS, "Read-only file system; the disk is read-only; choose another place"),
    ],
)
def test_row_64_a_place_that_may_not_be_written_is_named(refused, forbid, code, core):
    forbid(os, "mkdir", "deep/er", code)

    (line,) = refused(5, *TRAIN, "--out", "deep/er/run")

    assert line.startswith("deep/er")
    assert core in line


def test_row_64_a_folder_that_may_not_be_looked_into_is_named(refused, forbid):
    forbid(os, "stat", "secret", errno.EACCES)

    (line,) = refused(5, *TRAIN, "--out", "secret/run")

    assert line.startswith("secret/run")
    assert "Permission denied; user '" in line


def test_row_65_a_file_is_no_run_folder(refused):
    (line,) = refused(2, *TRAIN, "--out", "text.txt")

    assert line == "text.txt: is a file; choose another --out"


def test_row_66_a_small_disk_is_foreseen(refused, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(5000, 1000, 4000))

    (line,) = refused(5, *TRAIN)

    assert line.startswith("runs/tiny: this run needs about ")
    assert "3.906 KiB is free; free some space or choose another --out" in line


def test_row_66_the_tables_of_a_counted_model_are_foreseen(refused, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 0, 100_000))

    (line,) = refused(5, "train", "--config", "ngram", "data.source=text.txt", "--out", "run")

    assert line.startswith("run: this run needs about ")


def test_row_67_a_locked_run_names_who_holds_it(charlm, trained, refused):
    Path("new").mkdir()
    with folder_lock(RUN), folder_lock(Path("new")):
        for folder, command in ((RUN, RESUME), ("new", (*TRAIN, "--out", "new"))):
            (line,) = refused(5, *command)

            assert line.startswith(f"{folder}: process {os.getpid()} on ")
            assert line.endswith(") is writing there; wait for it or choose another --out")
            assert len(f"charlm: error: {line}") <= 200
        assert charlm("sample", "--run", RUN, "--max-new-chars", 1).code == 0


LARGE = ("model.n_embd=4096", "data.source=nowhere.txt")  # refused before the text is looked for


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("sys/fs/cgroup/job/memory.max", "memory.max"),
        ("sys/fs/cgroup/memory/job/memory.limit_in_bytes", "memory.limit_in_bytes"),
    ],
)
def test_row_68_a_job_that_may_have_less_than_the_model_needs_is_refused(
    refused, trained, monkeypatch, place, name
):
    for path, content in (
        (place, f"{2 << 30}\n"),
        ("proc/self/cgroup", "4:memory:/job\n0::/job\n"),
    ):
        Path("root", path).parent.mkdir(parents=True, exist_ok=True)
        Path("root", path).write_text(content)
    limits = memory.memory_limits
    monkeypatch.setattr(memory, "memory_limits", lambda: limits(Path("root")))
    monkeypatch.setattr(memory, "physical_bytes", lambda: 1 << 45)

    (line,) = refused(5, *TRAIN, *LARGE)

    assert line.startswith("model and train: training needs about 6.0")
    assert f"GiB of memory and this process may use 2 GiB ({name}); raise that, or lower" in line
    assert len(f"charlm: error: {line}") <= 200
    monkeypatch.setattr(size, "training_bytes", lambda *_: {"weights": 3 << 30})
    assert "needs about 3 GiB" in refused(5, *RESUME)[0]


def test_row_68_what_is_in_use_counts(refused, trained, monkeypatch):
    monkeypatch.setattr(memory, "memory_limits", lambda: [(8 << 30, "memory.max")])
    monkeypatch.setattr(memory, "physical_bytes", lambda: 1 << 45)
    monkeypatch.setattr(memory, "in_use", lambda name: 5 << 30)

    (line,) = refused(5, *TRAIN, *LARGE)

    assert "may use 8 GiB (memory.max), 5 GiB of it in use; raise that, or lower" in line
    assert len(f"charlm: error: {line}") <= 200


LIMITED = """
import resource, sys
resource.setrlimit(getattr(resource, sys.argv[1]), (200 << 20, 200 << 20))
from charlm.cli.main import run
code = run(sys.argv[2:])
assert "torch" not in sys.modules
sys.exit(code)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="where there are such limits")
@pytest.mark.parametrize(
    ("limit", "name", "least"),
    [("RLIMIT_AS", "ulimit -v", "1 GiB"), ("RLIMIT_DATA", "ulimit -d", "256 MiB")],
)
def test_row_68_a_process_that_may_not_even_load_torch_is_refused(trained, limit, name, least):
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, limit, *TRAIN],
        env=environment,
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == (
        f"charlm: error: memory: this process may use 200 MiB ({name}), and needs {least} before "
        "loading a model; raise the limit\n"
    )


@pytest.mark.parametrize("verb", ["sample", "eval", "train"])
def test_row_68_every_command_with_a_model_looks_first(refused, trained, monkeypatch, verb):
    monkeypatch.setattr(memory, "memory_limits", lambda: [(1 << 20, "ulimit -d")])

    (line,) = refused(5, verb)

    assert line.startswith("memory: this process may use 1 MiB (ulimit -d)")


@pytest.fixture
def without_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)


@pytest.mark.usefixtures("without_compiler", "trained")
def test_row_70_compiling_without_a_compiler_is_refused_before_anything_else(refused):
    for command in ((*TRAIN, "data.source=nowhere.txt"), RESUME):
        (line,) = refused(5, *command, "run.compile=true")

        assert line == (
            "run.compile: true needs a C++ compiler, and none of c++, g++ and clang++ is on the "
            "PATH; install one or set run.compile=false"
        )


@pytest.mark.usefixtures("without_compiler", "tiny")
def test_row_70_without_a_compiler_auto_does_not_compile(charlm, monkeypatch):
    monkeypatch.setattr("charlm.training.compiling.WORTH", 0)
    monkeypatch.setattr("torch.compile", lambda model: 1 / 0)

    result = charlm(*TRAIN, "run.compile=auto")

    assert result.code == 0
    assert "compil" not in result.stderr


def test_row_70_what_is_never_compiled_needs_no_compiler(charlm, tiny, without_compiler):
    Path("n.yaml").write_text("data: {source: text.txt}\nmodel: {type: ngram, order: 2}\n")

    assert charlm("train", "-c", "n.yaml", "-q", "run.compile=true").code == 0


@pytest.mark.parametrize("failing", ["encode_corpus", "write_file"])
def test_a_run_that_fails_before_it_began_leaves_no_folder(refused, monkeypatch, failing):
    def fail(*_, **__):
        raise MachineError("the disk: broke; mend it")

    monkeypatch.setattr(f"charlm.lifecycle.begin.{failing}", fail)

    refused(5, *TRAIN)
    refused(5, *TRAIN, "--out", "deep/er/run")


def test_an_empty_folder_of_the_users_survives_a_run_that_fails(refused, monkeypatch):
    monkeypatch.setattr("charlm.lifecycle.begin.check_disk", lambda *_: 1 / 0)
    Path("mine").mkdir()

    with pytest.raises(ZeroDivisionError):
        refused(5, *TRAIN, "--out", "mine")

    assert Path("mine").is_dir()


def test_a_prompt_for_samples_that_the_text_lacks_is_refused_before_anything_is_made(refused):
    (line,) = refused(3, *TRAIN, "sample.prompt=été")

    assert "character 1 'é' (U+00E9)" in line
