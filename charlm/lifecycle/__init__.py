"""How a run begins, resumes, and takes weights from other runs.

Read in this order: `takeover`, `orders` (of n-grams), `begin`, `resume`, `follow` (in other processes),
`start` (all of it in one call), `copying`.
"""
