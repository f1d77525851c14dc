"""A run on disk: its folder, what is in it, and whether it is sound.

Read in this order: `checkpoints` (find, choose and prune them), `folder` (what a run leaves, and
where), `metrics` (the log), `provenance` (what weights belong to), `weights`, `optimizer_state`,
`state` (one saved step), `load` (the model of a run), `mixture` (what a mixture keeps until it is
joined), `records` (what happens in a run), `checks` (what is checked in it), `verify` (what the
checks find).
"""

from charlm.runs.folder import RunFolder, find_run, next_free_name

__all__ = ["RunFolder", "find_run", "next_free_name"]
