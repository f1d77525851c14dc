"""What breaks programs that write: power cuts, kills, full disks, signals, crowds.

`disk` watches every durable operation of a block of code; `power` replays what a power cut would
have left of it; `lives` runs commands in processes that can be killed. The suite does a few trials of
each, `scripts/torture` hundreds.
"""
