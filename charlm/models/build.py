"""From a checked configuration to a model with its first weights."""

from typing import Any

import torch

from charlm.config import ModelConfig
from charlm.models.attention import AttentionModel, MultiHeadModel
from charlm.models.averaging import AveragingModel
from charlm.models.base import LanguageModel
from charlm.models.bigram import BigramModel
from charlm.models.gpt2 import GPT2
from charlm.models.mixture import MixtureModel
from charlm.models.modern import ModernGPT
from charlm.models.ngram import NGramModel


def build_model(config: ModelConfig, vocab_size: int, seed: int = 0) -> LanguageModel:
    """Build the model that `config` describes, its weights drawn from `seed`."""
    return construct(config, vocab_size, torch.Generator().manual_seed(seed))


def construct(
    config: ModelConfig, vocab_size: int, generator: torch.Generator | None
) -> LanguageModel:
    """Build the model that `config` describes, its weights drawn from `generator`."""
    sizes: dict[str, Any] = {"block_size": config.block_size, "generator": generator}
    match config.type:
        case "bigram":
            return BigramModel(vocab_size, **sizes)
        case "averaging":
            return AveragingModel(vocab_size, n_embd=config.n_embd, **sizes)
        case "attention":
            return AttentionModel(vocab_size, n_embd=config.n_embd, **sizes)
        case "multihead":
            return MultiHeadModel(vocab_size, n_embd=config.n_embd, n_head=config.n_head, **sizes)
        case "gpt":
            sizes |= {
                "n_layer": config.n_layer,
                "n_head": config.n_head,
                "n_embd": config.n_embd,
                "dropout": config.dropout,
            }
            if config.style == "gpt2":
                return GPT2(vocab_size, **sizes)
            return ModernGPT(vocab_size, n_gram=config.n_gram, **sizes)
        case "mixture":
            experts = {
                name: construct(expert.model, vocab_size, generator)
                for name, expert in config.experts.items()
                if expert.model is not None  # filled in by now, where it came from a run
            }
            return MixtureModel(vocab_size, config.block_size, experts, config.combine)
        case "ngram":
            backs_off = config.smoothing != "add-k"
            return NGramModel(vocab_size, order=config.order, backs_off=backs_off, **sizes)
