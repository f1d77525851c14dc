"""Gradients by hand: every backward rule written out, checked, and good enough to train with.

Read in this order: `value` (the chain rule on single numbers), `expression` and `graph` (a picture
of it), `rules` (the same for tensors, one derivation each), `plan` (rules in a row), `by_hand`
(whole models without autograd), `cases` and `check` (how we know that it is right).
`docs/backprop.md` walks through it.

Letters in shapes as in `charlm.models`; `dx` is the gradient of the loss with respect to x, and has
the shape of x.
"""
