"""Every model of the course, small, as a parameter: `each_config`, `trained_config`."""

import pytest

from charlm.config import (
    AttentionConfig,
    AveragingConfig,
    BigramConfig,
    BowConfig,
    ContextMixingConfig,
    ExpertConfig,
    GPTConfig,
    GRUConfig,
    LSTMConfig,
    MinGRUConfig,
    MixtureConfig,
    MLPConfig,
    MultiHeadConfig,
    NGramConfig,
    RNNConfig,
)

VOCAB = 11
BLOCK = 8

CONFIGS = {
    "bigram": BigramConfig(type="bigram", block_size=BLOCK),
    "bow": BowConfig(type="bow", block_size=BLOCK, n_embd=5, n_hidden=12),
    "mlp": MLPConfig(type="mlp", block_size=BLOCK, context=4, n_embd=5, n_hidden=12),
    "rnn": RNNConfig(type="rnn", block_size=BLOCK, n_layer=2, n_embd=5, n_hidden=12),
    "gru": GRUConfig(type="gru", block_size=BLOCK, n_embd=12, n_hidden=12, residual=True),
    "lstm": LSTMConfig(
        type="lstm", block_size=BLOCK, n_layer=3, n_embd=12, n_hidden=12, residual=True, tied=True
    ),
    "mingru": MinGRUConfig(type="mingru", block_size=BLOCK, n_layer=2, n_embd=12, n_hidden=8),
    "averaging": AveragingConfig(type="averaging", block_size=BLOCK, n_embd=12),
    "attention": AttentionConfig(type="attention", block_size=BLOCK, n_embd=12),
    "multihead": MultiHeadConfig(type="multihead", block_size=BLOCK, n_embd=12, n_head=3),
    "gpt2": GPTConfig(type="gpt", style="gpt2", block_size=BLOCK, n_layer=2, n_head=3, n_embd=12),
    "gpt2, as others have it": GPTConfig(
        type="gpt",
        style="gpt2",
        block_size=BLOCK,
        n_layer=1,
        n_head=3,
        n_embd=12,
        bias=True,
        gelu="tanh",
        tied=False,
    ),
    "modern": GPTConfig(
        type="gpt", style="modern", block_size=BLOCK, n_layer=2, n_head=3, n_embd=12
    ),
    "modern, no shift": GPTConfig(
        type="gpt",
        style="modern",
        block_size=BLOCK,
        n_layer=1,
        n_head=3,
        n_embd=12,
        token_shift=False,
    ),
    "modern, n-grams": GPTConfig(
        type="gpt", style="modern", block_size=BLOCK, n_layer=1, n_head=3, n_embd=12, n_gram=4
    ),
    "ngram": NGramConfig(type="ngram", block_size=BLOCK, order=3),
    "context-mixing": ContextMixingConfig(
        type="context-mixing", block_size=BLOCK, contexts=("1", "1 2", "1 2 3", "word"), memory=1
    ),
}
CONFIGS["mixture"] = MixtureConfig(
    type="mixture",
    block_size=BLOCK,
    experts={name: ExpertConfig(model=CONFIGS[name]) for name in ("ngram", "modern", "averaging")},
)
COUNTED = ("ngram", "context-mixing")
TRAINED = [name for name in CONFIGS if name not in COUNTED]  # by gradients


@pytest.fixture(params=CONFIGS, ids=str)
def each_config(request):
    return CONFIGS[request.param]


@pytest.fixture(params=TRAINED, ids=str)
def trained_config(request):
    return CONFIGS[request.param]
