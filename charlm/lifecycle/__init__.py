"""How a run begins, goes on, and takes weights from other runs: `begin`, `resume`, `takeover`."""
