"""Hugging Face's `NanoChatForCausalLM`: what a GPT of style `modern` is called there.

It has no token shift and no embeddings of n-grams, so only a model without both is one. What is easily got
wrong: it turns pairs the other way round, so the two halves of each head's queries and keys change places;
`rms_norm_eps` is the precision of float32, and the logits are not capped.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from charlm.models.modern import ROTARY_BASE, ModernGPT

EPSILON = torch.finfo(torch.float32).eps  # of RMSNorm


def without_place(model: ModernGPT) -> dict[str, str]:
    """Return the parts of a model that have no place there, with the settings that leave them out."""
    parts = {"token shift": "model.token_shift=false"} if model.shift else {}
    if model.ngram_embedding is not None:
        parts["embeddings of n-grams"] = "model.n_gram=1"
    return parts


def nanochat_tensors(model: ModernGPT) -> dict[str, Tensor]:
    """Return the weights under their names there."""
    found = {
        "model.embed_tokens.weight": model.token_embedding.weight,
        "lm_head.weight": model.head.weight,
    }
    block: Any
    for i, block in enumerate(model.blocks):
        layer, attention, mlp = f"model.layers.{i}", block.attention, block.mlp
        parts = dict(zip("qkv", attention.qkv.weight.chunk(3), strict=True))
        for name in "qk":  # (C, C), D rows for each head
            halves = parts[name].unflatten(0, (attention.n_head, 2, -1))
            parts[name] = halves.flip(1).flatten(0, 2)
        parts["o"] = attention.projection.weight
        found |= {f"{layer}.self_attn.{name}_proj.weight": one for name, one in parts.items()}
        found[f"{layer}.mlp.fc1.weight"] = mlp.expand.weight
        found[f"{layer}.mlp.fc2.weight"] = mlp.contract.weight
    return {name: tensor.detach() for name, tensor in found.items()}


def nanochat_config(model: ModernGPT, n_head: int, dropout: float) -> dict[str, Any]:
    """Return what `config.json` says of a model, besides what all models have."""
    width = model.token_embedding.embedding_dim
    return {
        "architectures": ["NanoChatForCausalLM"],
        "model_type": "nanochat",
        "vocab_size": model.vocab_size,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": n_head,
        "num_key_value_heads": n_head,
        "max_position_embeddings": model.block_size,
        "hidden_act": "relu2",
        "rms_norm_eps": EPSILON,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROTARY_BASE},
        "final_logit_softcapping": None,
        "attention_bias": False,
        "attention_dropout": dropout,
        "pad_token_id": None,  # nosec B105
        "tie_word_embeddings": False,
    }


def nanochat_logits(
    weights: dict[str, Tensor], n_head: int, idx: Int[Tensor, "B T"]
) -> Float[Tensor, "B T V"]:
    """Return the logits of a `NanoChatForCausalLM` with these weights, computed as it does."""

    def norm(x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPSILON)

    def turned(x: Float[Tensor, "B H T D"]) -> Float[Tensor, "B H T D"]:
        half = x.shape[-1] // 2
        speeds = ROTARY_BASE ** (-torch.arange(half) / half)
        angles = torch.arange(x.shape[-2])[:, None] * speeds.repeat(2)
        swapped = torch.cat([x[..., half:], -x[..., :half]], dim=-1)
        return x * angles.cos() + swapped * angles.sin()

    x = norm(weights["model.embed_tokens.weight"][idx])
    depth = sum(name.endswith("fc1.weight") for name in weights)
    for layer in (f"model.layers.{i}" for i in range(depth)):
        query, key, value = (
            torch.unflatten(
                F.linear(norm(x), weights[f"{layer}.self_attn.{name}_proj.weight"]),
                -1,
                (n_head, -1),
            ).transpose(1, 2)
            for name in "qkv"
        )
        query, key = norm(turned(query)), norm(turned(key))
        gathered = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        gathered = gathered.transpose(1, 2).flatten(-2)
        x = x + F.linear(gathered, weights[f"{layer}.self_attn.o_proj.weight"])
        hidden = F.linear(norm(x), weights[f"{layer}.mlp.fc1.weight"]).relu().square()
        x = x + F.linear(hidden, weights[f"{layer}.mlp.fc2.weight"])
    return F.linear(norm(x), weights["lm_head.weight"])
