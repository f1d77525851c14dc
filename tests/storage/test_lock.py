import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from charlm.errors import MachineError
from charlm.storage import folder_lock, lock

HOLD = """
import sys, time
from pathlib import Path
from charlm.storage.lock import folder_lock
with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other_process(tmp_path):
    """Another process, which holds the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_holder_is_refused_with_the_pid_of_the_first(tmp_path, other_process):
    with (
        pytest.raises(MachineError, match=rf"process {other_process.pid} on .* \(since 20"),
        folder_lock(tmp_path),
    ):
        pytest.fail("both hold it")

    assert (tmp_path / ".lock-holder.json").exists()  # the refused one tidied nothing away


def test_a_killed_process_frees_the_folder(tmp_path, other_process):
    other_process.send_signal(signal.SIGKILL)
    other_process.wait()

    with folder_lock(tmp_path):
        assert f'"pid": {os.getpid()},' in (tmp_path / ".lock-holder.json").read_text()


def test_a_second_holder_in_this_process_is_refused(tmp_path):
    with (
        folder_lock(tmp_path),
        pytest.raises(MachineError, match=f"process {os.getpid()} "),
        folder_lock(tmp_path),
    ):
        pytest.fail("both hold it")


def test_the_folder_is_free_again_after_the_block_and_after_a_failure_in_it(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), folder_lock(tmp_path):
            _ = 1 / 0

    assert not (tmp_path / ".lock-holder.json").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "null"])
def test_a_torn_note_about_the_holder_still_refuses(tmp_path, content, monkeypatch):
    monkeypatch.setattr(lock, "NAMING_SECONDS", 0.0)
    with folder_lock(tmp_path):
        (tmp_path / ".lock-holder.json").write_text(content)
        with pytest.raises(MachineError, match="another process"), folder_lock(tmp_path):
            pytest.fail("both hold it")


def test_a_holder_that_has_yet_to_write_its_name_is_waited_for(tmp_path):
    with folder_lock(tmp_path):
        note = tmp_path / ".lock-holder.json"
        facts = note.read_text()
        note.unlink()
        writing = threading.Timer(0.2, note.write_text, [facts])
        writing.start()
        with pytest.raises(MachineError, match=f"process {os.getpid()} "), folder_lock(tmp_path):
            pytest.fail("both hold it")
        writing.join()


def test_a_folder_that_cannot_be_locked_is_a_machine_error(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(MachineError, match="file"), folder_lock(Path("file")):
        pytest.fail("held")
