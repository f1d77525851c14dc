#!/usr/bin/env bash
# tqdm 4.70.1: a bar with `delay` is drawn by `tqdm.write` before the delay is over, and is then never cleared.
#
# `delay` says that a bar appears only after so many seconds. But `tqdm.write` draws every open bar again below
# the line that it writes, without asking for the delay. `close` does ask: within the delay it takes the bar for
# one that was never drawn, so it clears nothing, even with `leave=False`. The next line of the program then
# begins behind the bar. One would expect no bar before the delay, or at least that what was drawn is cleared.
#
# Who meets this: anyone who gives bars a delay, so that short work shows none, and prints lines by `tqdm.write`.
# A subclass whose `display` returns until the delay is over, and then sets `last_print_t`, avoids it.
#
# Output seen (Linux, Python 3.11):
#   '\rreading: 5it' stays on the line, 0 characters clear it
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "tqdm==4.70.1"
"$folder/venv/bin/python" - <<'PYTHON'
import io

from tqdm import tqdm

file = io.StringIO()
bar = tqdm(desc="reading", delay=60, leave=False, file=file, disable=False)
bar.update(5)
tqdm.write("a line", file=file)
bar.close()
_, _, after = file.getvalue().partition("a line\n")
drawn, _, cleared = after.partition(" [")
_, _, cleared = cleared.partition("]")
print(f"{drawn!r} stays on the line, {len(cleared)} characters clear it")
assert drawn == "\rreading: 5it" and cleared == "", "the behaviour has changed"
PYTHON
