"""What a configuration costs, as arithmetic: parameters, FLOPs, memory. Builds no tensor.

Tests hold every count against the real model's. C is `n_embd`, V the vocabulary, T `block_size`.
"""

import os
from dataclasses import dataclass, replace
from decimal import Decimal

from charlm.config.schema import Config, GPTConfig, ModelConfig
from charlm.errors import UsageError


@dataclass(frozen=True)
class Part:
    """One kind of weight in a model."""

    name: str
    shape: tuple[int, ...]
    copies: int = 1
    multiplies: bool = True  # a matrix product with every character, rather than a look-up

    @property
    def parameters(self) -> int:
        """Number of scalars in all copies."""
        count = self.copies
        for size in self.shape:
            count *= size
        return count


def parts(model: ModelConfig, vocab_size: int) -> list[Part]:
    """List the weights of a model in reading order; tied weights stand once.

    A counted model has none: its tables are as large as the text has distinct n-grams. A mixture
    has its experts', each under its expert's name; those of a run that was not read yet are unknown
    and left out.
    """
    v, t, c = vocab_size, model.block_size, getattr(model, "n_embd", 0)
    match model.type:
        case "ngram":
            return []
        case "bigram":
            return [Part("table", (v, v), multiplies=False)]
        case "averaging":
            return [
                Part("token_embedding", (v, c), multiplies=False),
                Part("head.weight", (v, 2 * c)),
                Part("head.bias", (v,), multiplies=False),
            ]
        case "attention" | "multihead":
            return [
                Part("token_embedding", (v, c), multiplies=False),
                Part("position_embedding", (t, c), multiplies=False),
                Part("query, key, value", (3 * c, c)),
                *([Part("projection", (c, c))] if model.type == "multihead" else []),
                Part("head.weight", (v, c)),
                Part("head.bias", (v,), multiplies=False),
            ]
        case "gpt":
            blocks = [
                Part("blocks.attention.qkv", (3 * c, c), model.n_layer),
                Part("blocks.attention.projection", (c, c), model.n_layer),
                Part("blocks.mlp.expand", (4 * c, c), model.n_layer),
                Part("blocks.mlp.contract", (c, 4 * c), model.n_layer),
            ]
            if model.style == "modern":
                embedding = Part("token_embedding", (v, c), multiplies=False)
                return [embedding, *blocks, Part("head", (v, c))]
            return [
                Part("token_embedding = head", (v, c)),
                Part("position_embedding", (t, c), multiplies=False),
                Part("blocks.norms", (2, c), model.n_layer, multiplies=False),
                *blocks,
                Part("final_norm", (c,), multiplies=False),
            ]
        case "mixture":
            return [
                replace(part, name=f"{name}.{part.name}")
                for name, expert in model.experts.items()
                if expert.model is not None
                for part in parts(expert.model, vocab_size)
            ]


def parameter_count(model: ModelConfig, vocab_size: int) -> int:
    """Count the trainable scalars of a model."""
    return sum(part.parameters for part in parts(model, vocab_size))


def flops_per_char(model: ModelConfig, vocab_size: int) -> int:
    """Estimate the floating-point operations to train on one character, forward and backward.

    6 for each weight that multiplies (2 forward, 4 backward), and 12 T C for each layer of
    attention: PaLM (Chowdhery et al. 2022), appendix B. Look-ups and element-wise work count zero.
    """
    flops = 6 * sum(p.parameters for p in parts(model, vocab_size) if p.multiplies)
    layers = {"attention": 1, "multihead": 1, "gpt": getattr(model, "n_layer", 1)}
    width = getattr(model, "n_embd", 0)
    flops += 12 * layers.get(model.type, 0) * model.block_size * width
    if model.type == "averaging":
        flops += 4 * model.block_size * width  # the matrix is constant: no gradient for it
    return flops


def flops_per_step(config: Config, vocab_size: int) -> int:
    """Estimate the floating-point operations of one optimizer update, the optimizer's left out."""
    chars = config.train.batch_size * config.model.block_size
    return chars * flops_per_char(config.model, vocab_size)


def checkpoint_bytes(config: Config, vocab_size: int) -> int:
    """Estimate the size of one checkpoint: weights and AdamW's two moments, in float32."""
    return 12 * parameter_count(config.model, vocab_size)


def training_bytes(config: Config, vocab_size: int) -> dict[str, int]:
    """Estimate the memory of training in float32, by what holds it, in bytes.

    Activations are a rough count of what a block keeps for its backward pass (16 C floats a
    character) and of logits, their log-softmax and its gradient (3 V floats a character). The fused
    kernel of attention keeps no (T, T) weights; by hand they are kept, and with dropout, either
    way, the weights, the mask and their product (H T floats a character each).
    """
    n, model = parameter_count(config.model, vocab_size), config.model
    chars = (config.train.micro_batch_size or config.train.batch_size) * model.block_size
    layers = model.n_layer if isinstance(model, GPTConfig) else 1
    a_block = 16 * getattr(model, "n_embd", 0)
    if model.type in ("attention", "multihead", "gpt"):
        by_hand = config.train.gradients == "by_hand"
        copies = 3 if getattr(model, "dropout", 0) else int(by_hand)
        a_block += copies * getattr(model, "n_head", 1) * model.block_size
    return {
        "weights": 4 * n,
        "gradients": 4 * n,
        "optimizer": 8 * n,
        "activations": 4 * chars * (layers * a_block + 3 * vocab_size),
    }


def check_memory(config: Config, vocab_size: int) -> None:
    """Refuse a configuration whose weights or activations cannot fit into this machine.

    Raises:
        UsageError: The estimate exceeds the machine's whole memory.
    """
    needed, total = sum(training_bytes(config, vocab_size).values()), machine_bytes()
    if needed > total:
        raise UsageError(
            f"model and train: training needs about {human_bytes(needed)} of memory and this "
            f"machine has {human_bytes(total)}; lower n_layer, n_embd, block_size or "
            "micro_batch_size"
        )


def machine_bytes() -> int:
    """Return the machine's physical memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def human_bytes(count: int) -> str:
    """Write a number of bytes as people read it: 1.5 GiB."""
    size = Decimal(count)  # a slip of the keyboard may ask for more than a float can say
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} EiB"
