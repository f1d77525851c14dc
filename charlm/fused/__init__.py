"""A training step on a CPU in few passes over memory: the same function as the lessons.

Run one by one, as the lessons write them, the operations between two matrix products read and write
every activation a dozen times, and memory is slower than arithmetic. Here each stretch between two
products is one kernel, and so is its derivative: a loop over rows, compiled by numba and run on
torch's threads. A row is read once, stays in the processor's cache while it is worked on in float32,
and is written once. Results agree with the lessons' up to rounding; the lessons say what they mean.

Vector instructions need loops that are plain to the compiler: over whole arrays, which it then knows
to be apart, rather than views; and from an unsigned start, as a negative index counts from the end.

Read in this order: `numbers` (float32, or the bits of bfloat16), `dropout`, `norms` (with the residual
addition before them), `heads` (from rows to heads and back), `attention`, `activation`, `blocks`
(forward and back through all of them), `gpt` (the two styles); then `recurrent` and `scan`, for models
with a state.
"""
