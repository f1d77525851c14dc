"""A small model of every kind, and a mixture of several."""

import pytest

from charlm.config import Config, read_config

V, CHARS = 11, 5000
MODELS = {
    "bigram": "{type: bigram, block_size: 8}",
    "averaging": "{type: averaging, block_size: 8, n_embd: 12}",
    "attention": "{type: attention, block_size: 8, n_embd: 12}",
    "multihead": "{type: multihead, block_size: 8, n_embd: 12, n_head: 3}",
    "gpt2": "{type: gpt, style: gpt2, block_size: 8, n_layer: 3, n_head: 2, n_embd: 12}",
    "gpt2, as others have it": "{type: gpt, style: gpt2, block_size: 8, n_layer: 3, n_head: 2, "
    "n_embd: 12, bias: true, gelu: tanh, tied: false}",
    "modern": "{type: gpt, style: modern, block_size: 8, n_layer: 3, n_head: 2, n_embd: 12}",
    "bow": "{type: bow, block_size: 8, n_embd: 6, n_hidden: 10}",
    "mlp": "{type: mlp, block_size: 8, context: 3, n_embd: 6, n_hidden: 10}",
    "rnn": "{type: rnn, block_size: 8, n_layer: 3, n_embd: 6, n_hidden: 10}",
    "gru": "{type: gru, block_size: 8, n_layer: 1, n_embd: 6, n_hidden: 10}",
    "lstm": "{type: lstm, block_size: 8, n_layer: 2, n_embd: 10, n_hidden: 10, tied: true}",
    "mingru": "{type: mingru, block_size: 8, n_layer: 3, n_embd: 12, n_hidden: 10}",
}
each_model = pytest.mark.parametrize("name", MODELS)
COUNTED = "{type: ngram, order: 4}"
MIXTURE = f"""{{type: mixture, experts: {{
    small: {{model: {MODELS["bigram"]}, train: {{batch_size: 6}}}},
    large: {{model: {MODELS["modern"]}, train: {{batch_size: 3, max_steps: 500}}}},
    counts: {{model: {COUNTED}}},
    old: {{run: runs/old}},
    known: {{run: runs/known, model: {MODELS["averaging"]}}},
}}}}"""


def config(name: str, *overrides: str) -> Config:
    model = {**MODELS, "ngram": COUNTED, "mixture": MIXTURE}[name]
    return read_config(f"model: {model}".encode(), "a.yaml", overrides)
