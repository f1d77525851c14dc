"""What a GGUF file holds, read by the package of its makers. llama.cpp itself: test_programs.py."""

import json
import re
from pathlib import Path

import pytest
import torch

import charlm as package
from charlm.errors import UsageError
from charlm.exchange import gguf_form
from charlm.models.gpt2 import GPT2
from charlm.text import ByteTokenizer, CharTokenizer
from tests.conftest import TEXT

gguf = pytest.importorskip("gguf", reason="pip install gguf")

KEYS = ["model.style=gpt2", "train.max_steps=2", "eval.baselines=false", "-q", "--out", "run"]


@pytest.fixture
def exported(charlm, tiny):
    assert charlm("train", "--config", "tiny.yaml", *KEYS).code == 0
    result = charlm("export", "run", "out", "--to", "gguf", "--json")
    assert result.code == 0, result.stderr
    return gguf.GGUFReader("out/model.gguf"), json.loads(result.stdout)


def test_the_file_holds_every_weight_and_symbol(exported):
    reader, said = exported
    ours = package.load("run")
    weights = ours.module.state_dict()

    tensors = {one.name: torch.from_numpy(one.data.copy()) for one in reader.tensors}
    fields = {name: field.contents() for name, field in reader.fields.items()}

    # Both keep a matrix as rows of outputs, so nothing is transposed.
    for theirs, name in {
        "token_embd": "token_embedding",
        "position_embd": "position_embedding",
        "blk.1.attn_qkv": "blocks.1.attention.qkv",
        "blk.0.attn_output": "blocks.0.attention.projection",
        "blk.1.ffn_up": "blocks.1.mlp.expand",
        "blk.1.ffn_down": "blocks.1.mlp.contract",
        "blk.0.ffn_norm": "blocks.0.mlp_norm",
        "output_norm": "final_norm",
    }.items():
        assert torch.equal(tensors[f"{theirs}.weight"], weights[f"{name}.weight"]), name
    assert sum(value.numel() for name, value in tensors.items() if "bias" not in name) == sum(
        value.numel() for value in weights.values()
    )
    assert not any(value.any() for name, value in tensors.items() if "bias" in name)
    symbols = sorted(set(TEXT))
    assert fields["tokenizer.ggml.tokens"] == [s.replace(" ", "\u2581") for s in symbols]
    assert fields["gpt2.context_length"] == 8
    assert fields["gpt2.attention.head_count"] == 2
    assert not fields["tokenizer.ggml.add_bos_token"]
    end = fields["tokenizer.ggml.eos_token_id"]
    assert json.dumps(fields["tokenizer.ggml.tokens"][end]) in Path("out/README.md").read_text()
    assert 0 < said["difference"] < 1e-2


@pytest.fixture
def small():
    """A model that never expects symbol 2."""
    model = GPT2(4, 4, n_layer=1, n_head=1, n_embd=2).eval()
    with torch.no_grad():
        model.token_embedding.weight.copy_(torch.tensor([[3.0, 0], [3, 0], [-9, 0], [3, 0]]))
        model.final_norm.weight.copy_(torch.tensor([1.0, 0]))
        model.position_embedding.weight.copy_(torch.tensor([[99.0, 0]] * 4))
    return model


def test_a_text_without_records_ends_at_the_least_likely_symbol(small):
    tokens = gguf_form.tokens_of(CharTokenizer(" ab!"), small, "run")

    assert tokens == gguf_form.Tokens(["\u2581", "!", "a", "b"], [1] * 4, 2, False)


def test_records_end_at_their_boundary_and_begin_with_it(small):
    tokenizer = CharTokenizer("ab", boundary=True, escape=True)

    tokens = gguf_form.tokens_of(tokenizer, small, "run")

    assert (tokens.end, tokens.begins) == (tokenizer.boundary, True)
    assert tokens.types[tokenizer.boundary] == gguf.TokenType.CONTROL
    assert tokens.types[tokenizer.escape] == gguf.TokenType.UNKNOWN


def test_bytes_are_tokens_of_bytes_but_for_the_space(small):
    tokens = gguf_form.tokens_of(ByteTokenizer(), small, "run")

    assert (tokens.texts[0x0A], tokens.types[0x0A]) == ("<0x0A>", gguf.TokenType.BYTE)
    assert (tokens.texts[0x20], tokens.types[0x20]) == ("\u2581", gguf.TokenType.NORMAL)
    assert len(set(tokens.texts)) == 256


@pytest.mark.parametrize(("symbol", "name"), [("\u2581", "U+2581"), ("\0", "U+0000")])
def test_a_symbol_that_has_no_place_there_is_refused_by_name(small, symbol, name):
    with pytest.raises(UsageError, match=re.escape(f"its alphabet has {name}, which")):
        gguf_form.tokens_of(CharTokenizer(f"ab{symbol}"), small, "run")


def test_another_style_is_refused(charlm, trained):
    result = charlm("export", trained, "out", "--to", "gguf")

    assert result.code == 2
    assert "gpt modern has no counterpart there" in result.error
    assert "--to onnx" in result.error


def test_a_missing_package_is_named(charlm, trained, monkeypatch):
    monkeypatch.setattr(gguf_form, "find_spec", lambda name: None)

    result = charlm("export", trained, "out", "--to", "gguf")

    assert result.code == 5
    assert result.error == "an export to gguf: needs gguf; pip install 'charlm[gguf]'"
