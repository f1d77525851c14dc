"""What a GGUF file holds, read by the package of its makers. llama.cpp itself: test_programs.py."""

import json
import re

import pytest
import torch

import charlm as package
from charlm.errors import UsageError
from charlm.exchange import gguf_form, hugging_face
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

    # Both keep a matrix as rows of outputs, so nothing is transposed. The head is tested below.
    for theirs, name in {
        "position_embd": "position_embedding",
        "blk.1.attn_qkv": "blocks.1.attention.qkv",
        "blk.0.attn_output": "blocks.0.attention.projection",
        "blk.1.ffn_up": "blocks.1.mlp.expand",
        "blk.1.ffn_down": "blocks.1.mlp.contract",
        "blk.0.ffn_norm": "blocks.0.mlp_norm",
        "output_norm": "final_norm",
    }.items():
        assert torch.equal(tensors[f"{theirs}.weight"], weights[f"{name}.weight"]), name
    symbols = sorted(set(TEXT))
    assert torch.equal(tensors["token_embd.weight"][:31], weights["token_embedding.weight"])
    tokens = [s.replace(" ", "\u2581") for s in symbols]
    assert fields["tokenizer.ggml.tokens"][:31] == tokens
    assert fields["tokenizer.ggml.tokens"][fields["tokenizer.ggml.eos_token_id"]] == "</s>"
    assert len(fields["tokenizer.ggml.tokens"]) == 31 + 3 + 256 == len(tensors["output.weight"])
    assert fields["gpt2.context_length"] == 8
    assert fields["gpt2.attention.head_count"] == 2
    assert not fields["tokenizer.ggml.add_bos_token"]
    assert 0 < said["difference"] < 1e-2


@pytest.mark.parametrize("options", [{}, {"bias": True, "tied": False}], ids=["plain", "biased"])
@pytest.mark.parametrize("gain", [1.0, 0.0])
def test_new_tokens_change_no_logit_and_are_never_drawn(options, gain):
    model = GPT2(5, 4, n_layer=1, n_head=1, n_embd=8, **options).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(generator=generator)
        model.final_norm.weight[3] *= gain
    idx = torch.tensor([[0, 4, 2, 1]])

    wide = gguf_form.widened(hugging_face.tensors_of(model), 7)

    with torch.no_grad():
        logits = hugging_face.logits_of(wide, 1, idx)
        torch.testing.assert_close(logits[..., :5], model(idx), rtol=0, atol=1e-4)
    torch.testing.assert_close(logits[..., 5:], torch.full((1, 4, 2), -100.0), rtol=0, atol=1e-3)


def test_a_text_without_records_gets_ends_of_its_own():
    tokens = gguf_form.tokens_of(CharTokenizer(" ab!"), "run")

    assert tokens.texts[:7] == ["\u2581", "!", "a", "b", "<unk>", "<s>", "</s>"]
    assert tokens.types[:8] == [1, 1, 1, 1, 2, 3, 3, 6]
    assert (tokens.unknown, tokens.begin, tokens.end, tokens.begins) == (4, 5, 6, False)
    assert len({*tokens.texts}) == len(tokens.texts) == 4 + 3 + 256


def test_records_end_at_their_boundary_and_begin_with_it():
    tokenizer = CharTokenizer("ab", boundary=True, escape=True)

    tokens = gguf_form.tokens_of(tokenizer, "run")

    assert (tokens.begin, tokens.end, tokens.begins) == (tokenizer.boundary,) * 2 + (True,)
    assert tokens.unknown == tokenizer.escape
    assert tokens.types[tokenizer.boundary] == gguf.TokenType.CONTROL
    assert tokens.types[tokenizer.escape] == gguf.TokenType.UNKNOWN


def test_bytes_are_tokens_of_bytes_but_for_the_space():
    tokens = gguf_form.tokens_of(ByteTokenizer(), "run")

    assert (tokens.texts[0x0A], tokens.types[0x0A]) == ("<0x0A>", gguf.TokenType.BYTE)
    assert (tokens.texts[0x20], tokens.types[0x20]) == ("\u2581", gguf.TokenType.NORMAL)
    assert tokens.texts[256:] == ["<unk>", "<s>", "</s>", "<0x20>"]


def test_nul_is_a_byte():
    tokens = gguf_form.tokens_of(CharTokenizer("a\0"), "run")

    assert (tokens.texts[0], tokens.types[0]) == ("<0x00>", gguf.TokenType.BYTE)
    assert tokens.texts.count("<0x00>") == 1


def test_a_symbol_that_has_no_place_there_is_refused_by_name():
    with pytest.raises(UsageError, match=re.escape("its alphabet has U+2581, which is how")):
        gguf_form.tokens_of(CharTokenizer("ab\u2581"), "run")


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
