"""The kernels of a run's training steps, loaded before the first step."""

from collections.abc import Iterator

import numpy as np
import torch

from charlm.config import Config
from charlm.fused.attention import causal_softmax
from charlm.fused.dropout import NO_DROPOUT
from charlm.fused.numbers import array
from charlm.models.device import choose_device, choose_dtype, precision
from charlm.models.kernel import share_threads
from charlm.models.registry import Kind, kind_for
from charlm.training import adamw


def load_kernels(config: Config) -> Iterator[None]:
    """Load what fused steps and AdamW need for a run's models.

    If it must be compiled, which takes some ten seconds on its first use on a machine, yield once
    before that.
    """
    if choose_device(config.run.device).type != "cpu":
        return
    for one in config.training_runs().values():
        kind = kind_for(one.model)
        if one.run.fused and kind.fused and one.train.gradients == "autograd":
            yield from _load(kind, choose_dtype(one.run.dtype, torch.device("cpu")))
        if getattr(one.model, "n_gram", 1) > 1:
            adamw.load_kernel()


def _load(kind: Kind, dtype: torch.dtype) -> Iterator[None]:
    if (kind, dtype) in _loaded:
        return
    share_threads()
    one = torch.zeros(1, 1, 1, dtype=dtype)
    none = array(one[:0])
    arrays = array(one), array(torch.zeros(1, 1)), np.float32(1), none
    causal_softmax(*arrays, *NO_DROPOUT)
    if causal_softmax.stats.cache_misses:
        yield
    model = kind.find("model")(2, 2, n_layer=1, n_head=1, n_embd=2, dropout=0.5)
    with precision(model.device, dtype), torch.random.fork_rng(devices=[]):
        logits = kind.find("fused")(model)(torch.zeros(1, 2, dtype=torch.int64))
    logits.float().sum().backward()
    _loaded.add((kind, dtype))


_loaded: set[tuple[Kind, torch.dtype]] = set()
