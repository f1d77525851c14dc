"""A page and pictures that show what a run is, what it has learned, and what surprises it.

Read in this order: `extra` (packages that not everyone installs), `opened` (a run, opened for a
report), `glyphs` (what stands for a symbol in a picture), `passage` (the surprise map),
`palette` (colours), `curves` (the log), `breakdown` (what the loss is made of), `comparing` (several
runs), `drawing` (what all charts share), `curve_charts`, `training_chart`, `loss_charts`,
`symbol_charts`, `state_charts`, `difference_chart`, `charts` (all that apply to some runs), `figures` (charts as files); then `attention`
(what heads look at), `writing` (samples, and what was recited), `facts` (what a run is), `shown` (all
that in the form that a page takes it), `page`.
"""
