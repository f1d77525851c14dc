"""A run on disk: its folder, its files, and whether they are sound.

Read in this order: `checkpoints` (find, choose and prune them), `folder` (the places in a run), `listing` (runs at a glance),
`requests` (to save),
`metrics` (the log), `export` (the log for other programs), `provenance` (the configuration behind weights), `parts` (those of several processes), `weights`, `optimizer_state`,
`state` (one saved step), `check` (one check, and those of every reader), `load` (the model of a
run), `mixture` (the files of a mixture until it is joined), `records` (events of a run), `board` (the log for TensorBoard), `checks`
(the list of checks), `verify` (their results), `merging` (an ordinary checkpoint from parts).
"""

from charlm.runs.folder import RunFolder, find_run, next_free_name

__all__ = ["RunFolder", "find_run", "next_free_name"]
