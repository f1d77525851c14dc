"""Small models as ONNX graphs: `python -m tests.exchange.graphs FOLDER` writes them.

A process of its own, because the tests' checks of types stand in the way of torch's exporter.
"""

import sys
from pathlib import Path

import torch

from charlm.config import read_config
from charlm.models import build_model

V, BLOCK = 11, 6
SIZES = f"block_size: {BLOCK}"
MODELS = {
    "modern": f"type: gpt, {SIZES}, n_layer: 2, n_head: 2, n_embd: 8, n_gram: 3",
    "unshifted": f"type: gpt, {SIZES}, n_layer: 1, n_head: 1, n_embd: 4, token_shift: false",
    "biased": f"type: gpt, style: gpt2, {SIZES}, n_layer: 1, n_head: 1, n_embd: 4, bias: true, "
    "gelu: tanh, tied: false",
    "gpt2": f"type: gpt, style: gpt2, {SIZES}, n_layer: 2, n_head: 2, n_embd: 8",
    "attention": f"type: attention, {SIZES}, n_embd: 6",
    "multihead": f"type: multihead, {SIZES}, n_embd: 6, n_head: 3",
    "averaging": f"type: averaging, {SIZES}, n_embd: 6",
    "bow": f"type: bow, {SIZES}, n_embd: 4, n_hidden: 6",
    "mlp": f"type: mlp, {SIZES}, context: 4, n_embd: 4, n_hidden: 6",
    "rnn": f"type: rnn, {SIZES}, n_layer: 2, n_embd: 4, n_hidden: 6",
    "gru": f"type: gru, {SIZES}, n_layer: 2, n_embd: 4, n_hidden: 6",
    "lstm": f"type: lstm, {SIZES}, n_layer: 2, n_embd: 4, n_hidden: 6",
    "mingru": f"type: mingru, {SIZES}, n_layer: 2, n_embd: 4, n_hidden: 6",
    "bigram": f"type: bigram, {SIZES}",
}


def built(name):
    """Return a model whose every weight is drawn, so that none hides a difference."""
    config = read_config(f"data: {{source: x}}\nmodel: {{{MODELS[name]}}}\n".encode(), "x", [])
    model = build_model(config.model, V).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.5, generator=generator)
    return model


def main(folder):
    from charlm.exchange.onnx_form import graph_of_step, graph_of_whole
    from charlm.exchange.steps import step_of

    for name in MODELS:
        model = built(name)
        if model.memory is not None:
            (folder / f"{name}.model.onnx").write_bytes(graph_of_whole(model))
        (folder / f"{name}.step.onnx").write_bytes(graph_of_step(step_of(model)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
