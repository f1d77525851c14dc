"""The commands of scripts/bench.

Read in this order: `common` (options, runs, measuring in turn), `machine` (its limits), `nanogpt` (the
reference), `runs` (whole commands), `steps` (training), `profile` (of one),
`texts`, `sampling`.
"""
