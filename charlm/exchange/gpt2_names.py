"""The names of a GPT-2's parts in other programs: all keep those of OpenAI's code.

Hugging Face, nanoGPT, minGPT and makemore's transformer call them so. Ours are those of
`charlm.models.gpt2`.
"""

MASK = ".attn.bias"  # ends the name of a constant in older files: which position sees which

_PARTS = {
    "token_embedding": "transformer.wte",  # nosec B105 -- names
    "position_embedding": "transformer.wpe",
    "final_norm": "transformer.ln_f",
    "head": "lm_head",
}
_OF_A_BLOCK = {
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.projection": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.expand": "mlp.c_fc",
    "mlp.contract": "mlp.c_proj",
}


def name_in_gpt2(ours: str) -> str:
    """Return the name of a weight there: of `final_norm.weight` it is `transformer.ln_f.weight`."""
    part, _, kind = ours.rpartition(".")
    if part in _PARTS:
        return f"{_PARTS[part]}.{kind}"
    _, number, inside = part.split(".", 2)
    return f"transformer.h.{number}.{_OF_A_BLOCK[inside]}.{kind}"
