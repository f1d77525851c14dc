import hashlib
import os
import zipfile
from dataclasses import replace

import pytest

from charlm.errors import DataError, MachineError
from charlm.text import DATASETS, Dataset
from charlm.text.datasets import Pin

TEXT = b"To be, or not to be, that is the question.\n" * 2_000


def pin(name, data):
    return Pin(name, len(data), hashlib.sha256(data).hexdigest())


@pytest.fixture
def plain(server):
    """A dataset that the server has as it is."""
    server.content = TEXT
    return Dataset("hamlet", "about", "public domain", server.url, text=pin("hamlet.txt", TEXT))


@pytest.fixture
def zipped(server, tmp_path):
    """Make a dataset whose archive holds the given members."""

    def make(members, text=TEXT):
        path = tmp_path / "made.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        server.content = path.read_bytes()
        return Dataset(
            "hamlet",
            "about",
            "public domain",
            server.url,
            text=pin("hamlet.txt", text),
            archive=pin("hamlet.zip", server.content),
        )

    return make


def test_a_text_is_fetched_once_and_kept(plain, server):
    first, second = plain.fetch(), plain.fetch()

    assert first == second == plain.path()
    assert os.listdir("data") == ["hamlet.txt"]
    assert first.read_bytes() == TEXT
    assert len(server.asked) == 1


def test_texts_are_kept_where_the_environment_says(plain, monkeypatch, tmp_path):
    monkeypatch.setenv("CHARLM_DATA", str(tmp_path / "elsewhere"))

    assert plain.fetch() == tmp_path / "elsewhere" / "hamlet.txt"


def test_an_archive_is_fetched_unpacked_and_thrown_away(zipped):
    dataset = zipped({"hamlet.txt": TEXT})
    seen = []

    path = dataset.fetch(lambda done, total: seen.append((done, total)))

    assert path.read_bytes() == TEXT
    assert os.listdir("data") == ["hamlet.txt"]
    assert seen[-1] == (dataset.archive.size, dataset.archive.size)


def test_a_file_of_the_users_with_the_same_name_is_not_overwritten(plain, server):
    os.mkdir("data")
    plain.path().write_bytes(b"my own")

    with pytest.raises(DataError, match=r"data/hamlet\.txt: is not the pinned hamlet; move it"):
        plain.fetch()

    assert plain.path().read_bytes() == b"my own"
    assert server.asked == []


def test_a_damaged_copy_of_the_right_size_is_noticed(plain):
    os.mkdir("data")
    plain.path().write_bytes(TEXT[:-1] + b"?")

    with pytest.raises(DataError, match="is not the pinned"):
        plain.fetch()


def test_what_is_not_the_pinned_text_is_not_kept(plain, server):
    server.content = TEXT[:-1] + b"?"

    with pytest.raises(DataError, match="not the pinned one"):
        plain.fetch()

    assert not os.path.exists("data")


@pytest.mark.parametrize(
    "members",
    [
        {"other.txt": TEXT},
        {"sub/hamlet.txt": TEXT},
        {"../hamlet.txt": TEXT},
        {},
    ],
    ids=str,
)
def test_an_archive_without_the_text_is_refused(zipped, members):
    dataset = zipped(members)

    with pytest.raises(DataError, match="not the expected archive"):
        dataset.fetch()

    assert not dataset.path().exists()


def test_a_pinned_file_that_is_no_archive_is_refused(plain, server):
    dataset = replace(plain, archive=pin("hamlet.zip", TEXT))

    with pytest.raises(DataError, match="not the expected archive"):
        dataset.fetch()


@pytest.mark.parametrize("member", [TEXT[:-1] + b"?", TEXT[:-1], TEXT + b"?"])
def test_a_member_that_is_not_the_pinned_text_is_refused(zipped, member):
    dataset = zipped({"hamlet.txt": member})

    with pytest.raises(DataError, match=r"its member 'hamlet\.txt' is not the pinned text"):
        dataset.fetch()

    assert not dataset.path().exists()
    assert not dataset.path().with_name("hamlet.txt.part").exists()


def test_a_bomb_is_stopped_just_past_the_pinned_size(zipped, monkeypatch):
    bomb = zipped({"hamlet.txt": bytes(50 << 20)})
    written = []
    monkeypatch.setattr(
        "charlm.text.datasets.matches",
        lambda path, size, sha256: written.append(path.stat().st_size),
    )

    with pytest.raises(DataError, match="not the pinned text"):
        bomb.fetch()

    assert len(TEXT) < written[0] < len(TEXT) + (1 << 17)


def test_a_copy_of_the_text_is_taken(plain, tmp_path, server):
    (tmp_path / "copy").write_bytes(TEXT)

    path = plain.add(tmp_path / "copy")

    assert path == plain.path() == plain.fetch()
    assert path.read_bytes() == TEXT
    assert (tmp_path / "copy").exists()
    assert os.listdir("data") == ["hamlet.txt"]
    assert server.asked == []


def test_a_copy_of_the_archive_or_of_its_text_is_taken(zipped, tmp_path):
    dataset = zipped({"hamlet.txt": TEXT})

    assert dataset.add(tmp_path / "made.zip").read_bytes() == TEXT
    dataset.path().unlink()
    (tmp_path / "copy").write_bytes(TEXT)
    assert dataset.add(tmp_path / "copy").read_bytes() == TEXT
    assert (tmp_path / "made.zip").exists()


def test_another_file_is_not_taken(plain, tmp_path):
    (tmp_path / "copy").write_bytes(TEXT + b"?")

    with pytest.raises(DataError, match=r"copy: is not hamlet \(86,000 bytes, .*data\.source="):
        plain.add(tmp_path / "copy")
    with pytest.raises(DataError, match="nowhere: not found"):
        plain.add(tmp_path / "nowhere")

    assert not plain.path().exists()


def test_a_copy_that_changes_after_its_check_is_not_taken(plain, tmp_path, monkeypatch):
    (tmp_path / "copy").write_bytes(TEXT)
    monkeypatch.setattr("shutil.copyfile", lambda source, target: target.write_bytes(b"another"))

    with pytest.raises(DataError, match="copy: changed while it was being copied; try again"):
        plain.add(tmp_path / "copy")

    assert os.listdir("data") == []


def test_a_copy_that_cannot_be_kept_is_a_machine_error(plain, tmp_path, monkeypatch):
    (tmp_path / "copy").write_bytes(TEXT)
    monkeypatch.setenv("CHARLM_DATA", str(tmp_path / "copy"))

    with pytest.raises(MachineError, match="copy"):
        plain.add(tmp_path / "copy")


def test_the_published_texts_are_pinned():
    shakespeare, names = DATASETS["shakespeare"].text, DATASETS["names"].text

    assert shakespeare.size == 1_115_394
    assert shakespeare.sha256 == "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    assert names.sha256 == "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d"
    assert set(DATASETS) == {"shakespeare", "names", "enwik8", "text8"}


@pytest.mark.parametrize("name", DATASETS)
def test_every_pin_is_complete_and_every_address_secure(name):
    dataset = DATASETS[name]

    assert dataset.name == name
    assert dataset.url.startswith("https://")
    for pinned in filter(None, [dataset.text, dataset.archive]):
        assert len(bytes.fromhex(pinned.sha256)) == 32
        assert pinned.size > 0
        assert os.path.basename(pinned.name) == pinned.name


def test_where_there_is_no_network_the_other_ways_are_named(plain, server):
    dataset = replace(plain, url="http://127.0.0.1:9/nothing")

    with pytest.raises(MachineError) as caught:
        dataset.fetch()

    assert caught.value.mend == (
        "try again, add a copy of yours (charlm data add hamlet FILE), or use python-docs, which "
        "needs no network"
    )
