"""Large texts, in stretches: the same bytes as from start to end, whoever writes them and however often."""

import io
import os
import signal
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from charlm.config import DataConfig
from charlm.errors import DataError, MachineError
from charlm.storage import atomic, read_manifest
from charlm.storage.atomic import shared_place
from charlm.text import encode_corpus, open_source, scan_text, stretch_jobs, stretches, workers
from charlm.text import large as large_texts
from charlm.text.survey import Survey
from tests.text.test_corpus import texts, whole

SENTENCE = "Der Öl-Preis: 12 €.\r\n語 😀, und so weiter.\n"


class Here:
    """Does the tasks of another process in this one: it takes a second to start one."""

    def __init__(self, job, setup):
        self.work = workers.JOBS[job](**setup)

    def ask(self, task):
        try:
            return self.work(**task)
        except DataError:
            return None

    def end(self):
        pass


@pytest.fixture
def large(monkeypatch):
    """Read every text in stretches of so many bytes, by so many workers."""

    def read_by(count, size=16):
        monkeypatch.setattr(stretches, "LARGE", 0)
        monkeypatch.setattr(stretches, "STRETCH", size)
        monkeypatch.setattr(workers, "own_cores", lambda: count)
        monkeypatch.setattr(workers, "_Worker", Here)

    return read_by


def encoded(folder, source, data, *, resumable=False):
    opened = open_source(str(source))
    scan = scan_text(opened, data, survey=Survey(data, 1 << 10), begun=folder)
    tokenizer = scan.tokenizer(data)
    corpus = encode_corpus(opened, data, scan, tokenizer, folder, resumable=resumable)
    return scan, corpus, tokenizer


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def outcome(folder, source, data):
    """Return all there is to know of a text that is encoded; or why it is refused."""
    try:
        scan, *_ = encoded(folder, source, data)
    except DataError as error:  # such as no character that is not rare
        return str(error)
    facts = (
        scan.size,
        scan.sha256,
        scan.notes,
        scan.survey.records,
        scan.counts.nonzero()[0].tolist(),
    )
    return *facts, files_of(folder)


@given(
    st.lists(texts | st.sampled_from(["", "\ufeff", "\ufeffa"]), min_size=1, max_size=4).filter(
        any
    ),
    st.integers(8, 40),
    st.sampled_from(
        [
            {},
            {"joiner": ""},
            {"joiner": "é"},
            {"unit": "bytes"},
            {"min_count": 2},
            {"encoding": "latin-1", "joiner": "é"},
            {"encoding": "latin-1", "joiner": "→"},
        ]
    ),
)
@settings(max_examples=8)
@example(["aé", "", "b"], 8, {"joiner": "é"})
@example(["0", "\ufeff"], 8, {})
@example(["why?", "so"], 8, {"encoding": "latin-1", "joiner": "→"})
def test_stretches_give_what_one_pass_gives(tmp_path_factory, parts, size, keys):
    folder = tmp_path_factory.mktemp("texts")
    data = DataConfig(source=str(folder / "in"), **keys)
    (folder / "in").mkdir()
    for i, part in enumerate(parts):
        (folder / "in" / f"{i}.txt").write_bytes(part.encode())
    expected = outcome(folder / "whole", folder / "in", data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stretches, "LARGE", 0)
        patch.setattr(stretches, "STRETCH", size)
        found = outcome(folder / "stretches", folder / "in", data)

    assert found == expected


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("keys", [{}, {"min_count": 20}, {"unit": "bytes"}])
def test_any_number_of_workers_writes_the_same_bytes(tmp_path, large, count, keys):
    path, data = tmp_path / "text.txt", DataConfig(**keys)
    path.write_text(SENTENCE * 10, encoding="utf-8", newline="")
    expected, *_ = encoded(tmp_path / "whole", path, data)
    large(count)

    found, corpus, _ = encoded(tmp_path / "tokens", path, data)

    assert len(found.counted.plan.stretches) > 20
    assert files_of(tmp_path / "tokens") == files_of(tmp_path / "whole")
    assert found.notes == expected.notes
    assert len(whole(corpus)) == found.size


def test_processes_of_their_own_write_the_same_bytes(tmp_path, monkeypatch):
    path, data = tmp_path / "text.txt", DataConfig()
    path.write_text(SENTENCE * 10, encoding="utf-8")
    encoded(tmp_path / "whole", path, data)
    monkeypatch.setattr(stretches, "LARGE", 0)
    monkeypatch.setattr(stretches, "STRETCH", 100)
    monkeypatch.setattr(workers, "own_cores", lambda: 1)
    opened = open_source(str(path))
    scan = scan_text(opened, data)
    monkeypatch.setattr(workers, "own_cores", lambda: 2)
    (tmp_path / "queue.py").write_text("raise SystemExit('not to be imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(filter(None, sys.path)))  # as of a program in a file

    encode_corpus(opened, data, scan, scan.tokenizer(data), tmp_path / "tokens")

    assert files_of(tmp_path / "tokens") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("bad", "at"),
    [
        (b"\xff", 0),
        (b"\xe2\x82", 0),
        (b"\xe2" + b"\x82" * 7, 3),
        (b"\xed\xa0\x80", 0),
        (b"\xc3", 0),
    ],
)
def test_invalid_bytes_are_reported_where_they_are(tmp_path, large, count, bad, at):
    path = tmp_path / "text.txt"
    for before in range(12, 29):  # wherever the cuts come
        path.write_bytes(b"\n" + b"a\n" * (before // 2) + b"-" * (before % 2) + bad + b"z\xff" * 9)
        large(count, 1 << 20)
        with pytest.raises(DataError) as expected:
            scan_text(open_source(str(path)), DataConfig())

        large(count)
        with pytest.raises(DataError) as found:
            scan_text(open_source(str(path)), DataConfig())

        assert str(found.value) == str(expected.value)
        assert f"byte {1 + before + at} " in str(found.value)


def test_only_a_kill_ends_a_process_and_it_is_named_and_what_was_done_counts(tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_bytes(b"abc\n" * 20)
    tasks = [{"stretch": [[str(path), start, start + 4]]} for start in range(0, 80, 4)]
    asked = workers._Worker.ask

    def ask(worker, task):
        if task is tasks[4]:
            for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                worker._process.send_signal(sent)  # as to a whole group
        if task is tasks[7]:
            worker._process.kill()
        return asked(worker, task)

    monkeypatch.setattr(workers._Worker, "ask", ask)
    setup = {"data": DataConfig().model_dump(), "several": False}
    done = []
    results = map(done.append, workers.in_order("count", setup, tasks, 2))

    with pytest.raises(MachineError, match="killed by signal 9; start the same command again"):
        list(results)

    assert [result["size"] for result in done] == [4] * 7


def test_any_error_of_a_process_is_met_again_by_the_one_that_asked(monkeypatch, large, capsys):
    def refused(**setup):
        raise MemoryError

    monkeypatch.setitem(workers.JOBS, "count", refused)
    asked = '{"job": "count", "setup": {}}\n{"stretch": []}\n'
    monkeypatch.setattr(sys, "stdin", io.StringIO(asked))
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    answers = sys.stdout

    workers.serve()

    assert answers.getvalue() == "null\n"
    monkeypatch.setattr(Here, "__init__", lambda self, job, setup: None)
    monkeypatch.setattr(Here, "ask", lambda self, task: None)
    large(2)
    with pytest.raises(MemoryError):
        list(workers.in_order("count", {}, [{}, {}]))


def stretches_read(monkeypatch):
    """Return a list of the places of stretches that are counted or encoded from now on."""
    read = []
    spied = stretch_jobs.read_stretch

    def reading(spans, *arguments, **keys):
        read.append(spans[0].start // 16)
        return spied(spans, *arguments, **keys)

    monkeypatch.setattr(stretch_jobs, "read_stretch", reading)
    return read


def stopped_at(monkeypatch, module, name, folder, path, data):
    """Encode a text, and be killed where a function would be called."""

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, name, killed)
        with pytest.raises(KeyboardInterrupt):
            encoded(folder, path, data, resumable=True)


def stopped_encoding(monkeypatch, folder, path, data, at):
    """Encode a text, and be killed when so many stretches are finished."""
    calls = []
    encode = stretch_jobs.Encoding.__call__

    def call(self, *arguments, **task):
        if len(calls) == at:
            raise KeyboardInterrupt
        calls.append(task["number"])
        return encode(self, *arguments, **task)

    monkeypatch.setattr(stretch_jobs.Encoding, "__call__", call)
    with pytest.raises(KeyboardInterrupt):
        encoded(folder, path, data, resumable=True)
    monkeypatch.setattr(stretch_jobs.Encoding, "__call__", encode)


@pytest.mark.parametrize("keys", [{}, {"min_count": 20}])
def test_a_stopped_encoding_goes_on_with_what_is_finished(tmp_path, large, monkeypatch, keys):
    path, data, folder = tmp_path / "text.txt", DataConfig(**keys), tmp_path / "tokens"
    path.write_text(SENTENCE * 10, encoding="utf-8")
    encoded(tmp_path / "whole", path, data)
    large(1)
    stopped_encoding(monkeypatch, folder, path, data, 5)
    assert not folder.exists()
    damaged = shared_place(folder) / "ids.bin"
    damaged.write_bytes(b"\xff" + damaged.read_bytes()[1:])  # in the first stretch
    with (shared_place(folder) / "finished").open("ab") as finished:
        finished.write(b"5 0123")  # cut off
    read = stretches_read(monkeypatch)

    scan, *_ = encoded(folder, path, data, resumable=True)

    assert files_of(folder) == files_of(tmp_path / "whole")
    # Nothing was counted again, and of the five that were finished only the damaged one was encoded.
    assert len(read) == len(scan.counted.plan.stretches) - 4
    assert not shared_place(folder).exists()


@pytest.mark.parametrize("keys", [{}, {"min_count": 20}])
def test_what_is_finished_before_any_of_several_stops_is_kept(tmp_path, large, monkeypatch, keys):
    path, data, folder = tmp_path / "text.txt", DataConfig(**keys), tmp_path / "tokens"
    path.write_text(SENTENCE * 10, encoding="utf-8")
    large(1)
    for at in (3, 6):
        stopped_encoding(monkeypatch, folder, path, data, at)
        with (shared_place(folder) / "finished").open("ab") as finished:
            finished.write(b"\0\0\n" + f"{at} 0123".encode())  # as a power cut leaves it
    read = stretches_read(monkeypatch)

    scan, *_ = encoded(folder, path, data, resumable=True)

    assert len(read) == len(scan.counted.plan.stretches) - 6


@pytest.mark.parametrize("keys", [{}, {"min_count": 20}])
@pytest.mark.parametrize("name", ["write_manifest", "_replace_folder"])
def test_a_kill_after_the_last_stretch_loses_nothing(tmp_path, large, monkeypatch, keys, name):
    path, data, folder = tmp_path / "text.txt", DataConfig(**keys), tmp_path / "tokens"
    path.write_text(SENTENCE * 10, encoding="utf-8")
    encoded(tmp_path / "whole", path, data)
    large(1)
    stopped_at(monkeypatch, atomic, name, folder, path, data)
    read = stretches_read(monkeypatch)

    encoded(folder, path, data, resumable=True)

    assert read == []
    assert files_of(folder) == files_of(tmp_path / "whole")


def test_escapes_that_a_kill_lost_are_encoded_again(tmp_path, large, monkeypatch):
    path, data, folder = tmp_path / "text.txt", DataConfig(min_count=20), tmp_path / "tokens"
    path.write_text("xyz " + "abc " * 50, encoding="utf-8")  # rare ones in the first stretch only
    encoded(tmp_path / "whole", path, data)
    large(1)
    stopped_at(monkeypatch, large_texts, "_joined_escapes", folder, path, data)
    for number in (0, 1, 5):
        (shared_place(folder) / f"escapes-{number}.bin").unlink()
    read = stretches_read(monkeypatch)

    encoded(folder, path, data, resumable=True)

    assert read == [0, 1, 5]
    assert files_of(folder) == files_of(tmp_path / "whole")


@pytest.mark.parametrize("keys", [{}, {"min_count": 20}])
@pytest.mark.parametrize("damaged", [None, "ids.bin", "escapes.bin"])
def test_a_folder_that_is_put_back_is_used_if_it_is_whole(
    tmp_path, large, monkeypatch, keys, damaged
):
    path, data, folder = tmp_path / "text.txt", DataConfig(**keys), tmp_path / "tokens"
    path.write_text(SENTENCE * 10, encoding="utf-8")
    large(1)
    scan, _, tokenizer = encoded(folder, path, data, resumable=True)
    before = files_of(folder)
    large_texts.put_back(folder, scan.counted, tokenizer)
    if damaged in before:
        (shared_place(folder) / damaged).write_bytes(b"\xff" + before[damaged][1:])
    read = stretches_read(monkeypatch)

    encoded(folder, path, data, resumable=True)

    assert files_of(folder) == before
    assert len(read) == (len(scan.counted.plan.stretches) if damaged in before else 0)


@pytest.mark.parametrize("change", ["text", "alphabet", "scan", "finished"])
def test_what_does_not_fit_the_text_is_not_kept(tmp_path, large, monkeypatch, change):
    path, data, folder = tmp_path / "text.txt", DataConfig(), tmp_path / "tokens"
    path.write_text("abc " * 100)
    large(1)
    stopped_encoding(monkeypatch, folder, path, data, 5)
    if change == "text":
        path.write_text("cba " * 100)
        os.utime(path, ns=(1, 1))
    elif change == "alphabet":
        data = DataConfig(min_count=101)
        path.write_text("abc " * 100 + " " * 2)
    else:
        name = {"scan": "scan.json", "finished": "finished"}[change]
        (shared_place(folder) / name).write_bytes(b"\xff{nonsense")

    _, corpus, tokenizer = encoded(folder, path, data, resumable=True)

    expected = {"text": "cba " * 100, "alphabet": "\ufffd\ufffd\ufffd " * 100 + " " * 2}
    assert tokenizer.decode(whole(corpus)) == expected.get(change, "abc " * 100)
    assert "tokenizer.json" not in read_manifest(folder)["files"]


def test_a_text_that_changes_after_it_was_counted_is_refused(tmp_path, large):
    path, data = tmp_path / "text.txt", DataConfig()
    path.write_text("abc " * 100)
    large(2)
    opened = open_source(str(path))
    scan = scan_text(opened, data)
    path.write_text("cba " * 100)

    with pytest.raises(DataError, match="changed while it was being read"):
        encode_corpus(opened, data, scan, scan.tokenizer(data), tmp_path / "tokens", resumable=True)

    assert [one.name for one in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.parametrize(
    "keys",
    [
        {"records": "lines"},
        {"newlines": "lf"},
        {"skip_lines": 1},
        {"encoding": "utf-16"},
        {"encoding": "shift-jis"},
    ],
)
def test_what_must_be_read_from_its_start_is(tmp_path, large, keys):
    path, data = tmp_path / "text.txt", DataConfig(**keys)
    path.write_bytes("one\ntwo\nthree\n".encode(keys.get("encoding", "utf-8")) * 9)
    large(2)

    assert scan_text(open_source(str(path)), data).counted is None
    assert scan_text(open_source(str(path)), DataConfig(unit="bytes")).counted


def test_compressed_files_are_read_from_their_start(tmp_path, large):
    import gzip

    (tmp_path / "text.txt.gz").write_bytes(gzip.compress(SENTENCE.encode()))
    large(2)
    opened = open_source(str(tmp_path / "text.txt.gz"))

    assert scan_text(opened, DataConfig()).size == len(SENTENCE)
    assert scan_text(opened, DataConfig()).counted is None
    assert scan_text(opened, DataConfig(unit="bytes")).counted


def test_a_stretch_takes_no_more_memory_than_its_chunks(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(np.random.default_rng(0).integers(32, 127, 16 << 20, np.uint8).tobytes())
    count = stretch_jobs.Counting(DataConfig().model_dump(), False)
    peaks = []

    for stop in (1 << 20, 16 << 20):
        tracemalloc.start()
        assert count([[str(path), 0, stop]])["size"] == stop
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    assert peaks[1] < peaks[0] + (1 << 20)
