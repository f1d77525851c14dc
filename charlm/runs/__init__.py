"""What a run is on the disk, and whether it is sound.

Read `checkpoints`, `metrics` and `folder` first (what is where), then `provenance` (what weights were
trained with), `weights`, `state` (what a checkpoint holds), `checks` (one list of them), `load`,
`mixture`, and `verify`.
"""

from charlm.runs.folder import RunFolder, find_run, next_free_name

__all__ = ["RunFolder", "find_run", "next_free_name"]
