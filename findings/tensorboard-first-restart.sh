#!/usr/bin/env bash
# tensorboard 2.21.0: the first restart in a log is not taken for one, so steps that were done twice
# are shown twice.
#
# A program that resumes from step N writes a record SessionLog.START with step N into a new event file;
# TensorBoard then drops what it has of the steps from N on. The reader does so only if it has seen
# a START before: the first one that it meets is taken for the start of the log, even in a second file.
# Writers that say nothing at the start and say START only when they resume (torch's
# SummaryWriter(purge_step=N) is one) thus get no purge at their first resumption, and get it at the second.
#
# Who meets this: anyone who resumes training and looks at its curves: they go back in time, and a
# smoothed one is wrong. Writing START with step 0 into the first file, too, is a way round.
#
# Output seen (x86-64 Linux, Python 3.11):
#   START only at the resumption: steps [0, 1, 2, 3, 4, 2, 3, 4]
#   START at the beginning, too:  steps [0, 1, 2, 3, 4]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "tensorboard==2.21.0" "numpy==2.4.6" "setuptools<81" 2>/dev/null
"$folder/venv/bin/python" - "$folder" 2>/dev/null <<'PYTHON'
import sys
import time
from pathlib import Path

from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter


def steps(folder, start_at_first):
    for number, (first, marked) in enumerate([(0, start_at_first), (2, True)]):
        writer = EventFileWriter(str(folder), filename_suffix=f".{number}")
        if marked:
            writer.add_event(Event(step=first, session_log=SessionLog(status=SessionLog.START)))
        for step in range(first, 5):
            value = Summary.Value(tag="loss", simple_value=float(step))
            writer.add_event(Event(step=step, wall_time=1e9 + step, summary=Summary(value=[value])))
        writer.close()
        time.sleep(1.1)  # files are named, and read in order, by their second
    found = EventAccumulator(str(folder))
    found.Reload()
    return [one.step for one in found.Tensors("loss")]


place = Path(sys.argv[1])
late, both = steps(place / "late", False), steps(place / "both", True)
print(f"START only at the resumption: steps {late}")
print(f"START at the beginning, too:  steps {both}")
assert late == [0, 1, 2, 3, 4, 2, 3, 4], "the behaviour has changed"
assert both == [0, 1, 2, 3, 4], "the behaviour has changed"
PYTHON
