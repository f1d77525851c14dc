"""New runs of large texts that fail before their first step, and are started again."""

from pathlib import Path

import pytest

from charlm.config import load_config
from charlm.errors import DataError, MachineError
from charlm.lifecycle.follow import followed, orders_for
from charlm.lifecycle.start import Start, Watcher, begun
from charlm.storage.atomic import shared_place
from charlm.text import stretch_jobs, stretches, workers
from charlm.training.ranks import LostError

OUT = Path("run")
PLACE = shared_place(OUT / "tokens")


@pytest.fixture
def start(tiny, monkeypatch):
    """Begin the tiny run, which fails with an error before its first step if one is given."""
    monkeypatch.setattr(stretches, "LARGE", 0)
    monkeypatch.setattr(workers, "own_cores", lambda: 1)

    def run(error=None):
        with begun(Start(load_config("tiny.yaml"), "tiny", OUT), Watcher()) as prepared:
            if error:
                raise error
            return prepared

    return run


def full(*_):
    raise MachineError("run", "no space left on device")


def ids():
    return {path.name: path.read_bytes() for path in (OUT / "tokens").iterdir()}


def test_ids_of_a_large_text_outlast_a_process_that_is_lost(start, monkeypatch):
    with pytest.raises(LostError):
        start(LostError("process 0 of 2", "another one did not come"))
    assert [path.name for path in OUT.iterdir()] == [PLACE.name]
    monkeypatch.setattr(stretch_jobs, "read_stretch", lambda *_, **__: 1 / 0)

    prepared = start()

    assert not PLACE.exists()
    assert prepared.corpus.facts["size"] == sum(
        split.stop - split.start for split in prepared.corpus.splits.values()
    )
    assert set(ids()) == {"ids.bin", "MANIFEST.json"}


def test_ids_of_a_large_text_outlast_a_full_disk_after_them(start, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("charlm.lifecycle.begin.choose_orders", full)
        with pytest.raises(MachineError):
            start()
    monkeypatch.setattr(stretch_jobs, "read_stretch", lambda *_, **__: 1 / 0)

    assert start().config.data.source


def test_nothing_is_kept_of_a_text_that_is_wrong_or_small(start, monkeypatch):
    with pytest.raises(DataError):
        start(DataError("text", "wrong"))
    assert not OUT.exists()
    with monkeypatch.context() as patch:
        patch.setattr(stretch_jobs, "flush_file", full)
        with pytest.raises(MachineError):
            start()
    assert PLACE.exists()
    monkeypatch.setattr(stretches, "LARGE", 1 << 28)

    start()

    assert not PLACE.exists()
    assert ids()


def test_a_process_that_follows_does_not_read_all_ids_again(start, monkeypatch):
    prepared = start()
    monkeypatch.setattr("charlm.storage.manifest.sha256_of", lambda path: 1 / 0)
    monkeypatch.setattr("charlm.text.tokens.TokenFile.read", lambda *_: 1 / 0)

    found = followed(orders_for(prepared))

    assert found.corpus.facts == prepared.corpus.facts
    (OUT / "tokens/ids.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"0 bytes, its manifest says"):
        followed(orders_for(prepared))
