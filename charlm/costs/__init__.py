"""What more processes would bring, by arithmetic: time, memory and communication of a step.

Read in this order: `written` (numbers for a reader), `work` (what a step has to do), `demands` (what each strategy asks of a process),
`devices` (GPUs by published numbers), `cores` (this machine as a device),
`measuring` (its times), `estimate` (the time and memory of a step, and the best choice), `scaling`
(what breaks first on thousands of devices).
"""
