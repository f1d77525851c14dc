import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from charlm import __version__
from charlm.cli import main, output
from charlm.errors import CharlmError, Problem

VERBS = ["train", "sample", "eval", "baselines", "compare", "verify"]
VERBS += ["explain", "gradcheck", "graph", "doctor", "data", "config"]


def python(*arguments: str, **named) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=200, **named
    )


def test_the_command_line_is_imported_without_torch():
    heavy = "{'torch', 'numpy', 'yaml', 'safetensors'}"

    done = python("-c", f"import sys, charlm.cli.main; print(sorted({heavy} & set(sys.modules)))")

    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_help_names_every_verb(charlm):
    result = charlm("--help")

    assert (result.code, result.stderr) == (0, "")
    assert all(f"\n  {verb} " in result.stdout for verb in VERBS)
    assert charlm("-h").stdout == result.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(charlm, verb):
    result = charlm(verb, "--help")

    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"Usage: charlm {verb} ")


@pytest.mark.parametrize("arguments", [[], ["data"], ["config"]], ids=str)
def test_no_command_at_all_is_answered_with_help(charlm, arguments):
    result = charlm(*arguments)

    assert (result.code, result.stderr) == (2, "")
    assert result.stdout.startswith("Usage: charlm")


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("trian", "train"), ("smaple", "sample"), ("evaluate", "eval"), ("Train", "train")],
)
def test_an_unknown_command_is_answered_with_the_nearest(charlm, typo, meant):
    result = charlm(typo)

    assert (result.code, result.stdout) == (2, "")
    assert result.error == (
        f"No such command {typo!r}. Did you mean {meant!r}?; see 'charlm --help'"
    )


def test_an_unknown_option_is_answered_with_the_nearest(charlm):
    result = charlm("train", "--confg", "gpt")

    assert result.code == 2
    assert result.error.startswith("No such option: --confg")
    assert "--config" in result.error
    assert result.error.endswith("see 'charlm train --help'")


def test_the_version_is_printed(charlm):
    assert charlm("--version").stdout == f"charlm {__version__}\n"


def test_debug_adds_the_traceback_and_changes_nothing_else(charlm):
    plain, debugging = charlm("sample"), charlm("--debug", "sample")
    os.environ.pop("CHARLM_DEBUG")

    assert (plain.code, debugging.code) == (4, 4)
    assert "Traceback" not in plain.stderr
    assert debugging.stderr.startswith("Traceback")
    assert debugging.error == plain.error


@pytest.mark.parametrize("kind", CharlmError.__subclasses__())
def test_every_kind_of_mistake_has_its_exit_code(charlm, monkeypatch, kind):
    def fail(*_):
        raise kind.of(Problem("a", "wrong", "mend it"), Problem("b", "wrong too", "mend it"))

    monkeypatch.setattr("charlm.config.preset_names", fail)
    codes = {"UsageError": 2, "DataError": 3, "CheckpointError": 4, "MachineError": 5}

    result = charlm("config", "list")

    assert result.code == codes.get(kind.__name__, 6)
    assert result.stderr == (
        "charlm: error: a: wrong; mend it\ncharlm: error: b: wrong too; mend it\n"
    )


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (MemoryError(), 5, "out of memory; free some, raise its limit, or use a smaller model"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            5,
            "out of mem",
        ),
        (OSError(5, "Input/output error", "a.txt"), 5, "a.txt: Input/output error; check the path"),
        (OSError("odd"), 5, "standard output or a temporary file: odd; check the path"),
    ],
)
def test_what_the_machine_refuses_is_one_line(charlm, monkeypatch, error, code, line):
    def fail():
        raise error

    monkeypatch.setattr("charlm.config.preset_names", fail)

    result = charlm("config", "list")

    assert result.code == code
    assert result.error.startswith(line)


@pytest.mark.parametrize(
    "said",
    [
        "could not create a primitive",
        "could not create a primitive descriptor for a matmul primitive",
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory",
        "[enforce fail at alloc_cpu.cpp:89] data. DefaultCPUAllocator: not enough memory: you tried",
        "std::bad_alloc",
        "unable to mmap 4096 bytes from file </dev/shm/x>: Cannot allocate memory (12)",
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "GET was unable to find an engine to execute this computation",
        "can't start new thread",
        "Resource temporarily unavailable",
    ],
)
def test_memory_that_torch_is_refused_is_no_bug(charlm, monkeypatch, said):
    def fail():
        raise RuntimeError(said)

    monkeypatch.setattr("charlm.config.preset_names", fail)

    result = charlm("config", "list")

    assert (result.code, result.error[:14]) == (5, "out of memory;")


def test_memory_that_numpy_is_refused_is_no_bug(charlm, monkeypatch):
    monkeypatch.setattr("charlm.config.preset_names", lambda: np.empty(2**60, np.uint8))

    result = charlm("config", "list")

    assert (result.code, result.error[:14]) == (5, "out of memory;")


def test_another_error_of_torch_is_a_bug(charlm, monkeypatch):
    def fail():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)")

    monkeypatch.setattr("charlm.config.preset_names", fail)

    with pytest.raises(RuntimeError):
        charlm("config", "list")


def test_an_interrupt_is_130(charlm, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr("charlm.config.preset_names", interrupt)

    assert charlm("config", "list").code == 130


def test_a_bug_is_not_hidden(charlm, monkeypatch):
    monkeypatch.setattr("charlm.config.preset_names", lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        charlm("config", "list")


def test_a_closed_stdout_is_no_bug():
    done = subprocess.run(
        f"{sys.executable} -m charlm config list >&-", shell=True, capture_output=True, text=True
    )

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full disk to write to")
@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("config list >/dev/full", 5, "standard output: No space left on device; free some space"),
        ("--help >/dev/full", 5, "standard output: No space left on device; free some space"),
        ("--version >/dev/full", 5, "standard output: No space left on device; free some space"),
        (">/dev/full", 5, "standard output: No space left on device; free some space"),
        ("config lst >/dev/full", 2, "No such command 'lst'."),
        ("config list 2>/dev/full", 0, ""),
        ("config list >/dev/full 2>/dev/full", 5, ""),
        ("config list >&- 2>&- <&-", 0, ""),
        ("config list 2>&-", 0, ""),
        ("config lst 2>&-", 2, ""),
    ],
)
def test_a_stream_that_takes_nothing_is_one_line_at_most(command, code, said):
    buffered = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}

    done = subprocess.run(
        f"{sys.executable} -m charlm {command}",
        shell=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=buffered,
        text=True,
    )

    assert done.returncode == code
    lines = done.stderr.splitlines()
    assert len(lines) == bool(said)
    assert not said or lines[0].startswith(f"charlm: error: {said}")


def test_a_narrow_encoding_refuses_no_character(tmp_path):
    (tmp_path / "é.txt").write_text("é" * 20, encoding="utf-8")

    done = python(
        "-m",
        "charlm",
        "data",
        "info",
        "é.txt",
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )

    assert done.returncode == 0, done.stderr
    assert "source   \\xe9.txt" in done.stdout


def test_an_answer_is_one_line_whatever_was_given(charlm):
    result = charlm("train", "--config", "gpt", "x" * 100_000 + "\n=\x1b[2J")

    assert result.code == 2
    assert result.stderr.count("\n") == 1
    assert "\x1b" not in result.stderr
    assert len(result.error) <= output.LONGEST


def test_an_interrupt_during_the_imports_leaves_no_traceback(tmp_path):
    """The first module of the command line sends it as it is imported."""
    program = (
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'charlm.cli.output': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "import runpy; runpy.run_module('charlm', run_name='__main__')\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True)

    assert done.returncode == -signal.SIGINT
    assert done.stderr == b""


def test_an_interrupt_while_the_interpreter_winds_up_leaves_no_traceback():
    program = (
        "import atexit, os, signal, sys\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGINT)\n"
        "sys.argv = ['charlm', '--version']\n"
        "from charlm.__main__ import main; main()\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True)

    assert done.returncode == -signal.SIGINT
    assert done.stderr == b""
    assert done.stdout.startswith(b"charlm ")


def test_a_folder_that_was_removed_is_said_before_anything_ends_in_it(
    charlm, tmp_path, monkeypatch
):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    result = charlm("compare")

    assert (result.code, result.error) == (5, "this folder: it was removed; change to another")


def test_a_folder_of_ours_that_may_not_be_read_is_no_mistake_in_the_command(
    charlm, tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "access", lambda *arguments, **options: False)

    for command in (("sample", "--run"), ("eval", "--run"), ("verify",), ("compare",)):
        assert charlm(*command, tmp_path).code == 4  # there is no run: it was looked at


def test_compiled_code_is_not_kept_in_the_current_folder_for_an_empty_name():
    done = python(
        "-c",
        "import os, charlm.__main__; print('TORCHINDUCTOR_CACHE_DIR' in os.environ)",
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": ""},
    )

    assert done.stdout == "False\n"


@pytest.mark.parametrize(("value", "traced"), [("1", True), ("0", False), ("false", False)])
def test_debugging_can_be_switched_off_by_its_variable(charlm, monkeypatch, value, traced):
    monkeypatch.setenv("CHARLM_DEBUG", value)

    assert ("Traceback" in charlm("eval", "--run", "nowhere").stderr) == traced


def test_the_traceback_of_a_bug_does_not_command_the_terminal(monkeypatch, capsys):
    monkeypatch.setattr(main.sys, "argv", ["charlm", "doctor"])
    for name in ("excepthook", "stdin", "stdout", "stderr"):
        monkeypatch.setattr(main.sys, name, getattr(main.sys, name))

    def broken(arguments):
        raise ValueError("\x1b[2J\u202e")

    monkeypatch.setattr(main, "run", broken)
    with pytest.raises(ValueError, match="2J") as caught:
        main.main()
    main.sys.excepthook(caught.type, caught.value, caught.tb)

    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):\n")
    assert said.endswith("ValueError: \\x1b[2J\\u202e\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["score", "--by", "chars"],
            "--by chars: expected one of nats, bits; see 'charlm score --help'",
        ),
        (
            ["sample", "-n", "0"],
            "-n 0: expected a number of at least 1; see 'charlm sample --help'",
        ),
        (["sample", "-n", "two"], "-n two: expected a whole number; see"),
        (["sample", "-n"], "Option '-n' requires an argument; see 'charlm sample --help'"),
        (["sample", "--temperature", "hot"], "--temperature hot: expected a number; see"),
        (
            ["baselines", "a", "--val-fraction", "2"],
            "--val-fraction 2: expected a number of at most 1",
        ),
        (["score", "--by", "a\nb"], "--by a\\nb: expected one of nats, bits"),
    ],
)
def test_values_are_refused_in_the_words_of_a_command_line(charlm, arguments, said):
    result = charlm(*arguments)

    assert (result.code, result.stdout) == (2, "")
    assert result.error.startswith(said)
