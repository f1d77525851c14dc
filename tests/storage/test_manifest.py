import json
import os

import pytest

from charlm.errors import CheckpointError
from charlm.storage import new_folder, read_manifest, verify_folder
from charlm.storage.manifest import NAME, write_manifest


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "folder"
    with new_folder(path, {"step": 7}) as temporary:
        (temporary / "a.bin").write_bytes(bytes(range(256)))
        (temporary / "b.txt").write_bytes(b"text")
    return path


def rewrite(folder, **changes):
    path = folder / "MANIFEST.json"
    path.write_text(json.dumps(read_manifest(folder) | changes))


def test_an_untouched_folder_verifies_and_gives_back_its_facts(folder):
    manifest = verify_folder(folder)

    assert manifest["step"] == 7
    assert manifest["files"]["b.txt"] == {
        "size": 4,
        "sha256": "982d9e3eb996f559e633f4d194def3761d909f5a3b647d1a851fead67c32c9d1",
    }
    assert sorted(manifest["files"]) == ["a.bin", "b.txt"]


def flip_a_bit(path, position):
    data = bytearray(path.read_bytes())
    data[position // 8] ^= 1 << position % 8
    path.write_bytes(data)


@pytest.mark.parametrize("position", [0, 1023, 2047])
def test_one_flipped_bit_is_noticed(folder, position):
    flip_a_bit(folder / "a.bin", position)

    with pytest.raises(CheckpointError, match=r"a\.bin: SHA-256 differs"):
        verify_folder(folder)


def test_any_flipped_bit_of_the_manifest_itself_is_noticed(folder):
    path = folder / "MANIFEST.json"
    whole = path.read_bytes()
    for position in range(0, 8 * len(whole), 5):
        flip_a_bit(path, position)
        with pytest.raises(CheckpointError, match="folder"):
            verify_folder(folder)
        path.write_bytes(whole)

    assert verify_folder(folder)["step"] == 7


def test_a_manifest_of_the_first_version_does_without_proof_of_itself(folder):
    rewrite(folder, step=8)

    assert verify_folder(folder)["step"] == 8


def test_a_truncated_file_is_noticed(folder):
    os.truncate(folder / "a.bin", 255)

    with pytest.raises(CheckpointError, match=r"a\.bin: 255 bytes, its manifest says 256"):
        verify_folder(folder)


def test_a_missing_file_is_named(folder):
    (folder / "a.bin").unlink()

    with pytest.raises(CheckpointError, match=r"'a\.bin' is missing"):
        verify_folder(folder)


def test_an_extra_file_is_named(folder):
    (folder / "c.txt").write_text("?")

    with pytest.raises(CheckpointError, match=r"'c\.txt' is not in its manifest"):
        verify_folder(folder)


def test_a_folder_in_the_place_of_a_file_is_named(folder):
    (folder / "a.bin").unlink()
    (folder / "a.bin").mkdir()

    with pytest.raises(CheckpointError, match=r"'a\.bin' is missing or no regular file"):
        verify_folder(folder)


def test_a_symlink_is_refused_even_to_equal_content(folder, tmp_path):
    (folder / "a.bin").rename(tmp_path / "elsewhere")
    (folder / "a.bin").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(CheckpointError, match=r"unsafe path 'a\.bin'"):
        verify_folder(folder)


@pytest.mark.parametrize("name", ["../b.txt", "/etc/passwd", "sub/b.txt", "./b.txt", ".", ".."])
def test_a_name_outside_the_folder_is_refused_unread(folder, name):
    files = read_manifest(folder)["files"]
    (folder.parent / "b.txt").write_bytes(b"text")
    rewrite(folder, files=files | {name: files["b.txt"]})

    with pytest.raises(CheckpointError, match=r"unsafe path|is missing") as caught:
        verify_folder(folder)

    assert repr(name) in str(caught.value)


def test_a_newer_format_asks_for_an_upgrade(folder):
    rewrite(folder, format=2)

    with pytest.raises(CheckpointError, match="format 2, this charlm reads 1; upgrade"):
        read_manifest(folder)


def test_a_folder_without_a_manifest_was_never_finished(folder):
    (folder / "MANIFEST.json").unlink()

    with pytest.raises(CheckpointError, match=r"folder: no MANIFEST.json"):
        read_manifest(folder)


def test_a_pipe_in_the_manifests_place_is_not_waited_for(folder):
    (folder / "MANIFEST.json").unlink()
    os.mkfifo(folder / "MANIFEST.json")

    with pytest.raises(CheckpointError, match=r"no MANIFEST\.json"):
        read_manifest(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"format": 1, "files": []}',
        b'{"format": 1, "files": {"a.bin": 3}}',
        b'{"format": 1, "files": {"a.bin": null}}',
        b"\xff\xfe\xff",
        b"\x80\x04\x95pickle",
        b"[" * 100_000,
        b'{"format": 1, "files": {}, "n": ' + b"9" * 5000 + b"}",
        b'{"format": 1, "files": {}, "padding": "' + b"x" * (1 << 20) + b'"}',
    ],
    ids=lambda content: repr(content[:30]),
)
def test_a_hostile_manifest_is_refused_by_name(folder, content):
    (folder / "MANIFEST.json").write_bytes(content)

    with pytest.raises(CheckpointError, match=r"MANIFEST\.json: "):
        verify_folder(folder)


@pytest.mark.parametrize("entry", [{}, {"size": "256"}, {"size": 256}, {"size": 256, "sha256": 1}])
def test_an_entry_without_proof_proves_nothing(folder, entry):
    rewrite(folder, files=read_manifest(folder)["files"] | {"a.bin": entry})

    with pytest.raises(CheckpointError, match=r"a\.bin"):
        verify_folder(folder)


def test_a_file_that_vanishes_while_it_is_checked_is_a_checkpoint_error(folder, monkeypatch):
    def vanished(path):
        raise FileNotFoundError(2, "No such file or directory", str(path))

    monkeypatch.setattr("charlm.storage.manifest.sha256_of", vanished)

    with pytest.raises(CheckpointError, match="cannot be read"):
        verify_folder(folder)


def test_a_row_of_zeros_is_not_taken_for_the_place_of_its_own_hash(folder):
    zeros = "0" * 64
    for facts in ({"prompt": zeros}, {"source": f'"MANIFEST.json": {{\n   "sha256": "{zeros}'}):
        (folder / NAME).unlink(missing_ok=True)
        write_manifest(folder, facts)

        assert verify_folder(folder).items() >= facts.items()


def test_what_could_not_be_read_again_is_not_written(folder):
    with pytest.raises(
        CheckpointError, match=r"MANIFEST\.json: would have 1,0.* may have 1,048,576"
    ):
        write_manifest(folder, {"source": "x" * (1 << 20)})
