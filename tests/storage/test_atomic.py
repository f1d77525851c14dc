import contextlib
import errno
import getpass
import os
import shutil
from pathlib import Path

import pytest

from charlm.errors import MachineError
from charlm.storage import machine_errors, new_folder, verify_folder, write_file
from charlm.storage.atomic import move_folder, remove_folder, remove_leftovers, replacing
from tests.storage.conftest import Crash, Disk

NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


def temporaries(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".tmp-*")]


def fill(path: Path, text: str) -> None:
    with new_folder(path, {"text": text}) as folder:
        (folder / "a.txt").write_text(text)
        (folder / "b.txt").write_text(text[::-1])


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "file"

    write_file(path, b"old")
    write_file(path, b"new")

    assert path.read_bytes() == b"new"
    assert temporaries(tmp_path) == []


def test_a_files_content_is_flushed_before_its_name_and_the_name_before_the_return(tmp_path, disk):
    path = tmp_path / "file"

    write_file(path, b"data")

    file, folder = path.stat().st_ino, tmp_path.stat().st_ino
    assert [disk.log[0], disk.log[2]] == [("fsync", file), ("fsync", folder)]
    assert disk.log[1][0] == "replace"


def test_a_folder_is_flushed_before_its_name_and_the_name_before_the_return(tmp_path, disk):
    path = tmp_path / "folder"

    fill(path, "text")

    files = [(path / name).stat().st_ino for name in ("a.txt", "b.txt", "MANIFEST.json")]
    order = [("fsync", inode) for inode in [*files, path.stat().st_ino]]
    assert disk.log[:4] == order
    assert disk.log[4][0] == "rename"
    assert disk.log[5] == ("fsync", tmp_path.stat().st_ino)


def test_whichever_operation_fails_a_file_is_wholly_old_or_wholly_new(tmp_path, disk: Disk):
    path = tmp_path / "file"
    write_file(path, b"old")
    operations = len(disk.log)

    for number in range(1, operations + 1):
        disk.fail(number, NO_SPACE)
        with pytest.raises(MachineError, match="No space left"):
            write_file(path, b"new")
        disk.works_again()

        # Only the last, the flush of the folder, comes after the new file stands.
        assert path.read_bytes() == (b"new" if number == operations else b"old")
        assert temporaries(tmp_path) == []


@pytest.mark.parametrize("sticky", [False, True])
def test_whichever_operation_fails_a_folder_is_wholly_old_or_wholly_new(
    tmp_path, disk, file_system, sticky
):
    path = tmp_path / "folder"
    fill(path, "old")
    disk.log.clear()
    fill(path, "old")
    operations = [name for name, _ in disk.log]
    last = len(operations) - operations[::-1].index("rename") + 1  # the flush after it

    for number in range(1, last + 1):
        disk.fail(number, NO_SPACE, sticky=sticky)
        with pytest.raises(MachineError, match="No space left"):
            fill(path, "new")
        disk.works_again()
        if not sticky:  # what can be put right is put right at once
            verify_folder(path)
        remove_leftovers(tmp_path)

        assert verify_folder(path)["text"] == ("new" if number == last else "old")
        assert temporaries(tmp_path) == []


def test_wherever_power_is_lost_the_next_start_finds_a_whole_folder(tmp_path, disk, file_system):
    path = tmp_path / "run" / "tokens"
    path.parent.mkdir()
    fill(path, "old")
    disk.log.clear()
    fill(path, "old")
    operations = len(disk.log)

    found = []
    for number in range(1, operations + 1):
        disk.fail(number, Crash(), sticky=True)
        with pytest.raises(Crash):
            fill(path, "new")
        disk.works_again()
        remove_leftovers(tmp_path)

        found.append(verify_folder(path)["text"])
        assert temporaries(tmp_path) == []
        fill(path, "old")

    assert found == sorted(found, reverse=True)  # old up to some operation, new from there on
    assert set(found) == {"old", "new"}


def test_a_failure_in_the_block_leaves_the_old_folder_and_nothing_else(tmp_path):
    path = tmp_path / "folder"
    fill(path, "old")

    def half(folder: Path) -> None:
        (folder / "a.txt").write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), new_folder(path, {}) as folder:
        half(folder)

    assert verify_folder(path)["text"] == "old"
    assert os.listdir(tmp_path) == ["folder"]


def test_a_folder_is_not_there_before_its_block_ends(tmp_path):
    path = tmp_path / "folder"

    with new_folder(path, {}) as folder:
        (folder / "a.txt").write_text("text")
        assert not path.exists()

    assert sorted(os.listdir(path)) == ["MANIFEST.json", "a.txt"]


def test_facts_added_in_the_block_are_recorded(tmp_path):
    facts = {"step": 1}

    with new_folder(tmp_path / "folder", facts):
        facts["loss"] = 2.5

    assert verify_folder(tmp_path / "folder")["loss"] == 2.5


def test_an_operating_system_error_in_the_block_is_a_machine_error(tmp_path):
    with (
        pytest.raises(MachineError, match="No space left"),
        new_folder(tmp_path / "folder", {}),
    ):
        raise NO_SPACE

    assert os.listdir(tmp_path) == []


def test_wherever_power_is_lost_a_moved_folder_is_whole_in_one_place(tmp_path, disk, file_system):
    path, target = tmp_path / "step-1", tmp_path / "damaged-step-1"
    fill(path, "text")
    disk.log.clear()
    move_folder(path, target)
    operations = len(disk.log)

    for number in range(1, operations + 1):
        shutil.rmtree(target)
        fill(path, "text")
        disk.fail(number, Crash(), sticky=True)
        with pytest.raises(Crash):
            move_folder(path, target)
        disk.works_again()
        remove_leftovers(tmp_path)

        there = [folder for folder in (path, target) if folder.exists()]
        assert {verify_folder(folder)["text"] for folder in there} == {"text"}
        assert temporaries(tmp_path) == []
        if path in there:
            shutil.rmtree(target, ignore_errors=True)
            move_folder(path, target)


def test_wherever_power_is_lost_a_removed_folder_is_whole_or_gone(tmp_path, disk, file_system):
    path = tmp_path / "step-1"
    fill(path, "text")
    disk.log.clear()
    remove_folder(path)
    operations = len(disk.log)

    for number in range(1, operations + 1):
        fill(path, "text")
        disk.fail(number, Crash(), sticky=True)
        with pytest.raises(Crash):
            remove_folder(path)
        disk.works_again()
        remove_leftovers(tmp_path)

        assert os.listdir(tmp_path) in ([], ["step-1"])
        if path.exists():
            assert verify_folder(path)["text"] == "text"


def test_a_copy_of_a_folder_has_no_links_and_waits_for_no_pipe(tmp_path, file_system):
    (tmp_path / "outside").write_text("precious")
    path = tmp_path / "step-1"
    fill(path, "text")
    (path / "inner").mkdir()
    (path / "inner/link").symlink_to(tmp_path / "outside")
    os.mkfifo(path / "pipe")

    move_folder(path, tmp_path / "damaged")

    assert (tmp_path / "damaged/a.txt").read_text() == "text"
    assert (tmp_path / "outside").read_text() == "precious"
    if file_system == "overlay":
        left = {
            str(one.relative_to(tmp_path / "damaged")) for one in (tmp_path / "damaged").rglob("*")
        }
        assert left == {"a.txt", "b.txt", "MANIFEST.json", "inner"}


def test_a_removed_folder_vanishes_before_it_is_deleted(tmp_path, disk):
    fill(tmp_path / "folder", "text")
    disk.fail(2, Crash(), sticky=True)

    with pytest.raises(Crash):
        remove_folder(tmp_path / "folder")

    disk.works_again()
    assert not (tmp_path / "folder").exists()
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_removed_stays_without_a_fuss(tmp_path, disk):
    fill(tmp_path / "folder", "text")
    disk.fail(1, OSError(errno.EBUSY, "busy"))

    remove_folder(tmp_path / "folder")

    assert verify_folder(tmp_path / "folder")["text"] == "text"


def test_leftovers_go_and_everything_else_stays(tmp_path):
    (tmp_path / ".tmp-new-1234abcd-file").write_text("half")
    (tmp_path / "checkpoints" / ".tmp-new-1234abcd-step-1").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("precious")
    (tmp_path / ".tmp-old-1234abcd-outside").symlink_to(tmp_path / "outside")
    (tmp_path / ".tmp-old-1234abcd-link").symlink_to(tmp_path / "outside")
    (tmp_path / ".tmp-old-1234abcd-log").write_text("never moved aside")
    (tmp_path / ".tmp-notes.txt").write_text("a user's own")

    remove_leftovers(tmp_path)

    assert sorted(os.listdir(tmp_path)) == [".tmp-notes.txt", "checkpoints", "outside"]
    assert os.listdir(tmp_path / "checkpoints") == []
    assert os.listdir(tmp_path / "outside") == ["file"]


@pytest.mark.parametrize(
    ("number", "mend"),
    [
        (errno.EACCES, "user .* may not"),
        (errno.EPERM, "user .* may not"),
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "check the path"),
    ],
)
def test_what_the_system_refuses_is_one_line_with_the_path_and_a_way_on(number, mend):
    with (
        pytest.raises(MachineError, match=mend) as caught,
        machine_errors(Path("some/path")),
    ):
        raise OSError(number, os.strerror(number))

    assert str(caught.value).startswith(f"some/path: {os.strerror(number)}; ")
    assert "\n" not in str(caught.value)


def test_a_user_without_a_name_is_named_by_number(monkeypatch):
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(getpass, "getuser", nameless)

    with pytest.raises(MachineError, match=f"user {os.getuid()} may not"), machine_errors(Path()):
        raise PermissionError(errno.EACCES, "denied")


@pytest.mark.parametrize(
    "name", [".tmp-old-12345678-", ".tmp-old-12345678-.", ".tmp-new-12345678-.."]
)
def test_a_temporary_name_of_nothing_is_not_ours(tmp_path, name):
    (tmp_path / name).touch()

    remove_leftovers(tmp_path)

    assert os.listdir(tmp_path) == [name]


def test_a_replaced_file_is_the_old_one_until_the_block_succeeds(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("old")

    with contextlib.suppress(ZeroDivisionError), replacing(path) as out:
        out.write("new")
        raise ZeroDivisionError
    assert path.read_text() == "old"

    with replacing(path) as out:
        out.write("new")
        out.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
