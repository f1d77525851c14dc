"""Choose the next character: `choose` has the pure steps, `generate` strings them into text."""

from charlm.sampling.choose import draw, keep_top_k, keep_top_p, next_probabilities
from charlm.sampling.generate import Drawn, Settings, generate
from charlm.sampling.prompt import encode_prompt

__all__ = [
    "Drawn",
    "Settings",
    "draw",
    "encode_prompt",
    "generate",
    "keep_top_k",
    "keep_top_p",
    "next_probabilities",
]
