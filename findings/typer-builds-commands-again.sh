#!/usr/bin/env bash
# typer 0.29.2: each call of an app builds all its commands again, and keeps none of them.
#
# A program of a dozen commands pays this once, when it starts. But whoever calls `app([...])` in one process
# again and again, as tests do (with `CliRunner` too), pays each time for reading the signatures of all commands,
# also of those that are not called. One would expect the commands to be built once and kept.
#
# Who meets this: test suites of large command lines. With twenty commands of ten options a call that does nothing
# takes tens of milliseconds. `typer.main.get_command = functools.cache(typer.main.get_command)` avoids it.
#
# Output seen (Linux, Python 3.11):
#   3 calls of one command built 60 commands; a call takes 33 times as long as with the commands kept
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "typer==0.29.2"
"$folder/venv/bin/python" - <<'PYTHON'
import time

import typer

app = typer.Typer()
options = ", ".join(f"option_{i}: int = {i}" for i in range(10))
for name in range(20):
    space: dict = {}
    exec(f"def verb_{name}({options}) -> None: pass", space)
    app.command()(space[f"verb_{name}"])

built, build = [], typer.main.get_command_from_info


def counted(*arguments, **named):
    built.append(arguments)
    return build(*arguments, **named)


typer.main.get_command_from_info = counted
for _ in range(3):
    app(["verb-0"], standalone_mode=False)
number = len(built)


def seconds(call):
    took = []
    for _ in range(20):
        since = time.process_time()
        call(["verb-0"], standalone_mode=False)
        took.append(time.process_time() - since)
    return sorted(took)[len(took) // 2]


times = seconds(app) / seconds(typer.main.get_command(app))
print(f"3 calls of one command built {number} commands; a call takes {times:.0f} times as long as with the commands kept")
assert number == 60 and times > 3, "the behaviour has changed"
PYTHON
