import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import typer

from charlm.cli.signals import StopSignals
from charlm.errors import Stopped, check_stop


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_only_sets_a_flag(number, code):
    with StopSignals() as stop:
        assert not stop.requested()
        check_stop(stop.requested)

        os.kill(os.getpid(), number)

        assert stop.requested()
        assert stop.exit_code == code
        with pytest.raises(Stopped):
            check_stop(stop.requested)


def test_the_handlers_from_before_come_back():
    before = signal.getsignal(signal.SIGTERM)

    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) != before

    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_ignored_from_the_start_stays_ignored(number):
    """As `nohup` ignores SIGHUP, and a shell without job control SIGINT in the background."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), number)

            assert not stop.requested()
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_whole_command_leaves_ignored_signals_ignored():
    program = (
        "import os, signal\n"
        "for number in (signal.SIGHUP, signal.SIGINT): signal.signal(number, signal.SIG_IGN)\n"
        "import sys, charlm.__main__, charlm.cli.data\n"
        "charlm.__main__.cli.data.output.result = lambda _: [\n"
        "    os.kill(os.getpid(), number) for number in (signal.SIGHUP, signal.SIGINT)]\n"
        "sys.argv = ['charlm', 'config', 'list']\n"
        "charlm.__main__.main()\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=200)

    assert (done.returncode, done.stderr) == (0, b"")


def test_a_signal_whose_exception_was_dropped_still_ends_the_command():
    dropped = contextlib.suppress(Stopped)  # as C code does that called back to Python
    with pytest.raises(typer.Exit) as ended, StopSignals() as stop, stop.at_once(), dropped:
        os.kill(os.getpid(), signal.SIGINT)

    assert ended.value.exit_code == 130


def test_a_second_signal_ends_the_process_at_once():
    program = (
        "import os, signal, time; from charlm.cli.signals import StopSignals\n"
        "with StopSignals() as stop, stop.scratch() as scratch:\n"
        "    (scratch / 'ids.bin').touch()\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print(scratch, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=200)

    assert done.returncode == 130
    scratch = Path(os.fsdecode(done.stdout.strip()))
    assert scratch.name.startswith("charlm-")
    assert not scratch.exists()


def test_a_stop_while_the_text_is_read_leaves_nothing_behind(charlm, tiny, monkeypatch, tmp_path):
    def read(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)

    before = set(tmp_path.rglob("*"))
    monkeypatch.setattr("charlm.lifecycle.begin.check_memory", read)

    result = charlm("train", "--config", "tiny.yaml")

    assert (result.code, result.stdout, result.stderr) == (143, "", "")
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("verb", ["sample", "eval"])
def test_a_stop_while_a_model_works_ends_with_its_code(charlm, trained, monkeypatch, verb):
    monkeypatch.setattr(StopSignals, "requested", lambda self: True)
    monkeypatch.setattr(StopSignals, "exit_code", 143)

    result = charlm(verb)

    assert result.code == 143


@pytest.mark.parametrize("source", ["train", "eval"])
def test_a_signal_ends_the_wait_for_standard_input(trained, source):
    command = {
        "train": ["train", "-c", "tiny.yaml", "--out", "new", "data.source=-"],
        "eval": ["eval", "--file", "-"],
    }[source]
    process = subprocess.Popen(
        [sys.executable, "-m", "charlm", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdin.write(b"the fox")
    process.stdin.flush()
    while int.from_bytes(fcntl.ioctl(process.stdin, termios.FIONREAD, bytes(4)), sys.byteorder):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)  # it has read what there was, and waits for more

    process.communicate(timeout=200)

    assert process.returncode == 143
    assert not Path("new").exists()


def test_a_closed_standard_input_is_an_empty_text(tiny):
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import os, sys; os.close(0); sys.stdin = None; sys.argv = sys.argv[1:]; "
            "from charlm.cli.main import main; main()",
            *("charlm", "train", "-c", "tiny.yaml", "data.source=-"),
        ],
        capture_output=True,
        text=True,
    )

    assert done.returncode == 3
    assert "standard input: empty (0 bytes)" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_stop_while_the_model_is_compiled_does_not_wait(charlm, tiny, monkeypatch):
    def compile_model(*_):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    began = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr("charlm.training.gradients.worth_trying", lambda *_: True)
        patch.setattr("charlm.training.gradients.compile_model", compile_model)
        result = charlm("train", "-c", "tiny.yaml", "--out", "run", "run.fused=false")

    assert time.monotonic() - began < 30
    assert result.code == 130
    lines = result.stderr.splitlines()
    assert lines[-1] == "stopped at step 0, saved; continue with: charlm train --resume --out run"
    assert lines[-2].startswith("compiling the model")
    assert charlm("train", "--resume", "--out", "run").code == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name on this system")
def test_a_signal_ends_the_wait_for_a_configuration(tiny):
    os.mkfifo("pipe.yaml")
    process = subprocess.Popen(
        [sys.executable, "-m", "charlm", "train", "-c", "pipe.yaml"], stderr=subprocess.PIPE
    )
    with open("pipe.yaml", "wb"):  # once both ends are open
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=200)

    assert (process.returncode, errors) == (130, b"")


SENDS = """
import os, signal, sys


class Sends:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.{number})


sys.meta_path.insert(0, Sends())
from charlm.cli.main import run
sys.exit(run({arguments!r}))
"""


@pytest.mark.parametrize(
    ("module", "number"),
    [
        ("torch", "SIGTERM"),
        ("numpy._core", "SIGINT"),
        ("numpy.exceptions", "SIGINT"),
        pytest.param("torch", "SIGINT", marks=pytest.mark.slow),
        pytest.param("numpy._core", "SIGTERM", marks=pytest.mark.slow),
        pytest.param("numpy.exceptions", "SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_a_signal_while_torch_is_imported_ends_in_silence(tiny, module, number):
    """Torch imports NumPy from C++, and swallows what is raised there."""
    arguments = ["train", "-c", "tiny.yaml", "--out", "new", "-q"]
    program = SENDS.format(module=module, number=number, arguments=arguments)

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=200)

    code = 128 + getattr(signal, number)
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")
    assert not Path("new").exists()
