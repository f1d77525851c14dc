"""Gradients by hand: every backward rule derived, checked, and fast enough to train with.

Read in this order: `value` (the chain rule on single numbers), `expression`, `graph` (a picture
of it), `rules` (the same for tensors), `program` (rules in a row), `recurrence` (through time),
`by_hand` (whole models without autograd), `recurrent` (those that read one character after another), `cases`, `check` (how we know that a rule is right).

`docs/backprop.md` explains all of it. Letters in shapes are as in `charlm.models`; `dx` is the
gradient of the loss with respect to x, and has the shape of x.
"""
