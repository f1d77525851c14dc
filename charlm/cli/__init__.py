"""The command line: one file for each verb. Only this room prints, draws bars or sets exit codes.

Read in this order: `escaping`, `output`, `exits`, `signals`, `spelling` (how settings are written
on the command line), `verb` (what all commands share), `completion` (what the shell offers), `options` (those that verbs share), `launch` (by torchrun); then the
verbs: `config`, `baselines`, `data`, `curve`, `training_bar`, `training_output`, `train`, `prompts`, `sample_output`,
`sample`, `score_output`, `score`, `loss_output`, `evaluate`, `novelty_output`, `novelty`, `report`, `compare`, `compress`, `export`, `importing`, `serve`, `lr_find`, `costs` (of several processes), `explain`, `gradcheck`, `graph`, `verify`, `runs`,
`doctor`; last `usage` (mistakes in the command itself) and `main`, which joins them.
"""
