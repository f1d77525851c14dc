import hashlib
import os
import socket

import pytest

from charlm.errors import DataError, MachineError
from charlm.storage.download import download, matches

CONTENT = bytes(i * i % 251 for i in range(200_000))
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def fetch(server, tmp_path):
    """Fetch the server's file, pinned as CONTENT, to `got`."""
    server.content = CONTENT

    def call(**options):
        pinned = {"size": len(CONTENT), "sha256": SHA256} | options
        download(server.url, tmp_path / "data" / "got", **pinned)

    return call


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


def test_a_file_is_fetched_whole_in_one_request(fetch, server, folder):
    seen = []

    fetch(progress=lambda done, total: seen.append((done, total)))

    assert (folder / "got").read_bytes() == CONTENT
    assert os.listdir(folder) == ["got"]
    assert server.asked == [None]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert seen == sorted(seen)


def test_a_wrong_checksum_leaves_nothing(fetch, folder):
    with pytest.raises(DataError, match=r"SHA-256 is .* expected 0000"):
        fetch(sha256="0" * 64)

    assert not folder.exists()


def test_an_old_file_outlives_a_failed_fetch(fetch, folder):
    folder.mkdir()
    (folder / "got").write_text("old")

    with pytest.raises(DataError):
        fetch(sha256="0" * 64)

    assert (folder / "got").read_text() == "old"


def test_a_transfer_cut_midway_goes_on_where_it_stopped(fetch, server, folder):
    server.cuts = [70_000]

    fetch()

    assert (folder / "got").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=70000-"]
    assert server.sent == len(CONTENT)  # nothing was sent twice


def test_a_later_call_goes_on_where_an_earlier_stopped(fetch, server, folder):
    server.cuts = [50_000, 60_000]
    with pytest.raises(MachineError, match=r"110,000 of 200,000 bytes .*closed early.*again"):
        fetch(attempts=2)
    assert os.listdir(folder) == ["got.part"]

    fetch()

    assert (folder / "got").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=50000-", "bytes=110000-"]
    assert server.sent == len(CONTENT)


def test_a_server_without_ranges_sends_it_all_again(fetch, server, folder):
    server.takes_ranges = False
    server.cuts = [70_000]

    fetch()

    assert (folder / "got").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=70000-"]


def test_a_complete_part_is_only_checked(fetch, server, folder):
    folder.mkdir()
    (folder / "got.part").write_bytes(CONTENT)

    fetch()

    assert (folder / "got").read_bytes() == CONTENT
    assert server.asked == []


def test_a_part_of_something_else_is_discarded(fetch, server, folder):
    folder.mkdir()
    (folder / "got.part").write_bytes(b"?" * 1000)

    with pytest.raises(DataError, match="was discarded"):
        fetch()
    assert os.listdir(folder) == []
    fetch()

    assert (folder / "got").read_bytes() == CONTENT


def test_a_part_larger_than_the_pinned_file_is_begun_again(fetch, server, folder):
    folder.mkdir()
    (folder / "got.part").write_bytes(CONTENT + b"?")

    fetch(attempts=1)

    assert (folder / "got").read_bytes() == CONTENT
    assert server.asked == [None]


def test_never_more_than_the_pinned_size_is_kept(fetch, server, folder):
    seen = []
    server.content = b"?" + CONTENT * 3

    with pytest.raises(DataError, match="not the pinned one"):
        fetch(progress=lambda done, total: seen.append(done))

    assert max(seen) == len(CONTENT)
    assert not folder.exists()


def test_a_file_shorter_than_pinned_is_refused(fetch, server, folder):
    server.content = CONTENT[:-1]

    with pytest.raises(MachineError, match=r"199,999 of 200,000 bytes"):
        fetch()

    assert not (folder / "got").exists()


@pytest.mark.parametrize(("status", "reason"), [(404, "404 Not Found"), (500, "500 Internal")])
def test_an_http_error_is_reported_after_all_attempts(fetch, server, folder, status, reason):
    server.status = status

    with pytest.raises(MachineError, match=rf"0 of 200,000 bytes \(HTTP {reason}"):
        fetch()

    assert len(server.asked) == 3
    assert not folder.exists()


def test_a_range_the_server_does_not_have_begins_again(fetch, server, folder):
    folder.mkdir()
    (folder / "got.part").write_bytes(CONTENT[:1000])
    server.status = 416

    with pytest.raises(MachineError, match="HTTP 416"):
        fetch(attempts=1)
    server.status = None
    fetch()

    assert (folder / "got").read_bytes() == CONTENT
    assert server.asked == ["bytes=1000-", None]


def test_a_refused_connection_is_a_machine_error(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/file"

        with pytest.raises(MachineError, match=r"0 of 5 bytes .*refused"):
            download(url, tmp_path / "got", size=5, sha256=SHA256)

    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/file",
        "ftp://example.org/file",
        "ftp://localhost/file",
        "file:///etc/hostname",
        "file://localhost/etc/hostname",
        "/etc/hostname",
    ],
)
def test_only_https_is_fetched(tmp_path, url):
    with pytest.raises(DataError, match="only https"):
        download(url, tmp_path / "got", size=5, sha256=SHA256)


def test_a_folder_that_cannot_be_made_is_a_machine_error(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(MachineError, match="file"):
        download("https://example.org", tmp_path / "file" / "got", size=5, sha256=SHA256)


def test_a_file_matches_by_size_and_checksum(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)

    assert matches(tmp_path / "file", len(CONTENT), SHA256)
    assert not matches(tmp_path / "file", len(CONTENT) + 1, SHA256)
    assert not matches(tmp_path / "file", len(CONTENT), "0" * 64)


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["link", "hard link"])
def test_a_received_part_that_is_also_elsewhere_is_not_appended_to(
    fetch, server, folder, tmp_path, link
):
    folder.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(CONTENT[:1000])
    link(elsewhere, folder / "got.part")

    fetch()

    assert elsewhere.read_bytes() == CONTENT[:1000]
    assert server.asked == [None]
    assert not (folder / "got").is_symlink()
