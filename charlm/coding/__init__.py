"""Compression: a text as the code of its surprises, and back.

Read in this order: `container` (the file), `ranges` (range coding), `coder` (what turns a text into
code), `bits` (symbols bit by bit, in integers), `symbols` (symbols by a model's predictions),
`portable` (any bytes, without a run), `pieces` (what a run's alphabet lacks), `modelled` (any bytes,
with a run), `methods` (with a run, or without), `of_run` (which run, and what bits depend on),
`whole` (a text from file to file).
"""
