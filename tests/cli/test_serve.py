"""charlm serve: what it says, what it refuses, and how it stops."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from importlib import util
from pathlib import Path

import httpx
import pytest


def test_a_name_that_is_no_run_is_refused(charlm, trained):
    found = charlm("serve", "nope")

    assert found.code == 4
    assert "nope: not found" in found.error


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--host", ""), 2, "--host: empty; use 0.0.0.0 for every address of this machine"),
        (("--token", "a b"), 2, "--token: cannot be sent; use letters and digits, no spaces"),
        (("--token", ""), 2, "--token: cannot be sent"),
        (("--host", "203.0.113.1", "--port", "1"), 5, "203.0.113.1:1: cannot assign requested"),
        (
            ("--host", "name.invalid"),
            5,
            "name.invalid:8765: no such address; choose another --host",
        ),
    ],
)
def test_what_cannot_be_is_refused(charlm, trained, options, code, message):
    found = charlm("serve", trained, *options)

    assert (found.code, found.stdout) == (code, "")
    assert message in found.error


def test_a_port_that_is_taken_is_named(charlm, trained):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = charlm("serve", trained, "--port", port)

    assert found.code == 5
    said = f"127.0.0.1:{port}: address already in use; choose another --host or --port"
    assert said in found.error


def test_two_runs_of_one_name_are_refused(charlm, trained):
    found = charlm("serve", trained, trained)

    assert found.code == 2
    assert "two runs have the same name" in found.error


def test_an_absent_package_is_named(charlm, trained, monkeypatch):
    there = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "uvicorn" else there(name))

    found = charlm("serve", trained)

    assert found.code == 5
    assert "charlm serve: needs uvicorn; pip install 'charlm[serve]'" in found.error


# `charlm` with an engine that draws a character of each text, and all others once the file `go` is there.
HELD = """
import time
from pathlib import Path
from charlm.__main__ import main
from charlm.serving.engine import Engine

step = Engine._step

def held(self, woken):
    if all(job.drawn for job, _ in self._active.values()) and not Path("go").exists():
        time.sleep(0.005)
    else:
        step(self, woken)

Engine._step = held
main()
"""


@pytest.fixture
def started(trained):
    """Start a server of the tiny run; return the process, its address and its token."""
    found = []

    def start(*options):
        serve = ("serve", str(trained), "--port", "0", *options)
        command = [sys.executable, "-c", HELD, *serve]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        found.append(process)
        token = None
        for line in process.stderr:
            if line.startswith("token "):
                token = line.split()[1]
            if " at http" in line:
                return process, line.split(" at ")[1].split()[0], token
        raise AssertionError("the server did not start")

    yield start
    for process in found:
        process.kill()
        process.communicate()


def is_answered(url):
    try:
        return httpx.get(url, timeout=200).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.parametrize("place", ["torch", "charlm.library"])
def test_ctrl_c_while_it_loads_is_one_line(trained, place):
    # A module that the command imports sends the signal, twice.
    program = (
        "import os, signal, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {place!r}:\n"
        "            for _ in range(2): os.kill(os.getpid(), signal.SIGINT)\n"
        "import charlm.__main__\n"
        "sys.meta_path.insert(0, Watch())\n"
        f"sys.argv = ['charlm', 'serve', {str(trained)!r}]\n"
        "charlm.__main__.main()\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=200
    )

    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "stopped while the models were loading\n"


def test_ctrl_c_ends_a_server_that_nobody_uses(started):
    process, address, _ = started()
    assert is_answered(f"{address}/health")

    process.send_signal(signal.SIGINT)

    assert process.wait(200) == 130
    assert process.stderr.read() == ""


def test_sigterm_lets_texts_end_and_takes_no_more(started):
    process, address, token = started("--host", "0.0.0.0")
    host = f"http://127.0.0.1:{address.rpartition(':')[2]}"
    headers = {"Authorization": f"Bearer {token}"}
    assert httpx.get(f"{host}/v1/models").status_code == 401
    body = {"model": "tiny", "prompt": "a", "max_tokens": 50, "seed": 1, "stream": True}
    texts = [""] * 2

    def read(i, begun):
        with httpx.stream(
            "POST", f"{host}/v1/completions", json=body, headers=headers, timeout=200
        ) as answer:
            for line in answer.iter_lines():
                begun.set()
                if line.startswith("data: {"):
                    texts[i] += json.loads(line[6:])["choices"][0]["text"]

    readers = []
    for i in range(2):
        begun = threading.Event()
        readers.append(threading.Thread(target=read, args=(i, begun)))
        readers[-1].start()
        assert begun.wait(200)

    process.send_signal(signal.SIGTERM)

    said = process.stderr.readline()
    while is_answered(f"{host}/health"):  # until it has looked for signals
        pass
    assert all(reader.is_alive() for reader in readers)
    Path("go").touch()
    for reader in readers:
        reader.join(200)
    assert said == "finishing 2 texts (once more: stop at once)\n"
    assert [len(text) for text in texts] == [50, 50]
    assert process.wait(200) == -signal.SIGTERM
    assert process.stderr.read() == ""
