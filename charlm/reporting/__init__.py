"""A page and pictures that show what a run is, what it has learned, and what surprises it.

Read in this order: `extra` (packages that not everyone installs), `opened` (a run, opened for a
report), `glyphs` (what stands for a symbol in a picture), `passage` (the surprise map).
"""
