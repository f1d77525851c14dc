"""Compression: encode a text with a model's predictions, and decode it.

Read in this order: `container` (the file format), `ranges` (range coding), `coder` (the interface of
coders), `bits` (symbols bit by bit, in integers), `symbols` (symbols by a model's predictions),
`portable` (any bytes, without a run), `pieces` (characters outside a run's alphabet), `modelled` (any
bytes, with a run), `methods` (which of the two), `of_run` (which run, and what its bits depend on),
`whole` (from file to file).
"""
