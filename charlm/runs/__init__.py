"""What a run is on the disk: its folder, metrics, checkpoints, and whether they are sound.

Read `folder` first, then `belongs` (what weights mean nothing without), `weights`, `state` (what a
checkpoint holds), `mixture`, and `checks`.
"""

from charlm.runs.folder import RunFolder, find_run, next_free_name

__all__ = ["RunFolder", "find_run", "next_free_name"]
