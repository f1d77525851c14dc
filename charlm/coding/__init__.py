"""Compression: a text as the code of its surprises, and back.

Read in this order: `container` (the file), `coder` (what turns blocks into code), `ranges` (range
coding), `bits` (a model in integers), `portable` (coding with it), `methods` (with a run, or without), `pieces` (what a
run's alphabet lacks), `modelled` (coding with a model), `of_run` (which run, and what bits depend
on), `whole` (a text from file to file).
"""
