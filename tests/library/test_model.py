"""A trained model in Python."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import charlm as package
from charlm.errors import CheckpointError, DataError, UsageError
from charlm.models.looking import attention_weights


def test_it_yields_what_the_command_prints(charlm, trained):
    model = package.load(trained)

    pieces = list(model.stream("the ", seed=7, max_new_chars=12))

    printed = charlm("sample", "-p", "the ", "--seed", 7, "--max-new-chars", 12).stdout
    assert len(pieces) == 12
    assert "the " + "".join(pieces) + "\n" == printed


def test_it_takes_what_the_command_takes(charlm, trained):
    model, options = package.load(str(trained), "last", "cpu"), {"temperature": 0.5, "top_k": 4}

    found = model.generate("thé", seed=1, unknown="nearest", allow="[a-z ]", stop="q", **options)

    command = ("sample", "-p", "thé", "--seed", 1, "--unknown", "nearest", "--allow", "[a-z ]")
    command += ("--stop", "q", "--temperature", 0.5, "--top-k", 4, "--checkpoint", "last")
    assert found + "\n" == charlm(*command, "--no-echo").stdout
    assert found == model.generate("the", seed=1, allow="[a-z ]", stop=["q", "qq"], **options)


def test_it_adapts_as_the_command_does(charlm, tiny):
    assert charlm("train", "--config", "ngram", "data.source=text.txt", "-q").code == 0
    prompt, options = "dozen dogs! dozen dogs! do", {"seed": 1, "max_new_chars": 9}

    found = package.load().generate(prompt, adapt=True, **options)

    command = ("sample", "-p", prompt, "--seed", 1, "--max-new-chars", 9, "--no-echo")
    assert found + "\n" == charlm(*command, "--adapt").stdout
    assert found != package.load().generate(prompt, **options)


def test_each_text_is_another_without_a_seed(trained):
    model = package.load(trained)

    assert len({model.generate(max_new_chars=40) for _ in range(3)}) == 3


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"prompt": "☃"}, DataError, "U\\+2603"),
        ({"temperature": -1}, UsageError, "sample.temperature"),
        ({"tempereture": 1}, UsageError, "did you mean"),
        ({"allow": "☃"}, UsageError, "no such character"),
        ({"seed": -1}, UsageError, "seed=-1: out of range; use a number"),
        ({"prompt": "☃"}, DataError, "use unknown='nearest' to"),
        ({"seed": 2**62}, UsageError, "use a number from 0"),
    ],
)
def test_mistakes_are_answered_before_the_first_character(trained, arguments, error, message):
    with pytest.raises(error, match=message):
        package.load(trained).stream(**arguments)


def test_a_run_that_is_not_there_is_named(trained):
    with pytest.raises((UsageError, CheckpointError), match="nope"):
        package.load("nope")


def test_who_only_imports_charlm_does_not_wait_for_torch():
    program = "import charlm, sys; print('torch' in sys.modules, 'load' in charlm.__all__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # noqa: B018


def test_several_texts_are_those_of_the_seeds_that_follow(trained):
    model = package.load(trained)

    texts = model.generate("the ", 7, seed=3, max_new_chars=9)

    alone = [model.generate("the ", seed=seed, max_new_chars=9) for seed in range(3, 10)]
    assert texts == alone
    with pytest.raises(UsageError, match="n: 0: expected at least 1"):
        model.generate(n=0)


def test_a_score_is_the_sum_of_what_the_logits_say(trained):
    model, text = package.load(trained), "jugs! lazy"

    score = model.score(text)

    ids = model.tokenizer.encode("\n" + text)
    log_p = torch.log_softmax(model.logits(ids).double(), dim=1)
    each = [-log_p[i, ids[i + 1]].item() for i in range(len(text))]
    windows = [model.score(text[:k]).nats for k in (3, 7)]
    assert score.nats[:8] == pytest.approx(each[:8], abs=1e-5)  # the block has 8 characters
    assert [len(found) for found in windows] == [3, 7]
    assert np.array_equal(windows[1], score.nats[:7])
    assert score.total_nats == pytest.approx(sum(score.nats))
    (other,) = model.score_each([text])
    assert (other.nats, other.chars) == (pytest.approx(score.total_nats), 10)


def test_unknown_characters_are_charged_where_they_stand(trained):
    model = package.load(trained)

    known, strange = model.score(["abc", "a☃b☃c"])

    (charged,) = model.score_each(["a☃b☃c"])
    assert (strange.unknown, len(strange.nats)) == (2, 5)
    assert np.array_equal(strange.nats[[0, 2, 4]], known.nats)
    assert strange.nats[1] == strange.nats[3]
    assert strange.total_nats == pytest.approx(charged.nats)


def test_next_holds_the_probabilities_that_sampling_draws_from(trained):
    model = package.load(trained)

    found = model.next("the q")

    assert sum(found.values()) == pytest.approx(1)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    logits = model.logits(model.tokenizer.encode("the q"))[-1]
    p = torch.softmax(logits, dim=0)
    assert found["u"] == pytest.approx(p[model.tokenizer.encode("u")[0]].item(), rel=1e-5)


def test_a_saved_model_writes_the_same_without_text_or_log(trained, tmp_path):
    model = package.load(trained)

    run = model.save(tmp_path / "alone")

    alone = package.load(run)
    assert alone.generate("the ", seed=1) == model.generate("the ", seed=1)
    files = {path.name for path in run.path.rglob("*") if path.is_file()}
    assert files - {".lock"} == {
        "README.md",
        "config.yaml",
        "tokenizer.json",
        "MANIFEST.json",
        "belongs.json",
        "model.safetensors",
        "state.json",
    }
    with pytest.raises(UsageError, match="holds a run"):
        model.save(run.path)


def test_threads_share_a_model(trained):
    model = package.load(trained)
    alone = [model.generate("the ", seed=seed, max_new_chars=30) for seed in range(8)]

    with ThreadPoolExecutor(8) as pool:
        texts = pool.map(lambda seed: model.generate("the ", seed=seed, max_new_chars=30), range(8))

    assert list(texts) == alone


def test_a_notebook_shows_text_as_text(trained):
    shown = package.load(trained).score("<b>jugs</b>\n")._repr_html_()

    assert "<b>" not in shown
    assert shown.count("<span title=") == 12


def test_attention_has_a_row_for_each_character(trained):
    model = package.load(trained)

    weights = model.attention("the dog.")

    ids = torch.from_numpy(model.tokenizer.encode("the dog.").astype("int64"))
    assert weights.shape == (2, 2, 8, 8)
    np.testing.assert_array_equal(weights, attention_weights(model.module, ids).numpy())
    np.testing.assert_array_equal(model.attention(b"the dog."), weights)


def test_attention_of_records_begins_with_the_boundary(charlm, tiny):
    keys = ["data.records=lines", "eval.baselines=false", "--out", "lines"]
    assert charlm("train", "--config", "tiny.yaml", *keys, "-q").code == 0

    assert package.load("lines").attention("the dog").shape == (2, 2, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"text": "the dogs."}, UsageError, "text: 9 symbols, and this model reads 1 to 8 at once"),
        ({"text": ""}, UsageError, "0 symbols"),
        ({"text": "☃"}, DataError, "U\\+2603.*use characters of its own text"),
        ({"text": "the", "expert": "gpt"}, UsageError, "those with attention: none"),
    ],
)
def test_attention_refuses(trained, arguments, error, message):
    with pytest.raises(error, match=message):
        package.load(trained).attention(**arguments)


def test_attention_of_a_mixture_is_that_of_its_expert(charlm, tiny):
    gpt = "{model: {type: gpt, block_size: 8, n_layer: 1, n_embd: 8}, train: {max_steps: 1}}"
    bigram = "{model: {type: bigram, block_size: 8}, train: {max_steps: 1}}"
    for out, experts in {
        "one": f"{{gpt: {gpt}, pairs: {bigram}}}",
        "two": f"{{a: {gpt}, b: {gpt}}}",
    }.items():
        tiny.write_text(
            f"data: {{source: text.txt}}\nmodel: {{type: mixture, experts: {experts}}}\n"
        )
        assert (
            charlm(
                "train", "--config", "tiny.yaml", "--out", out, "-q", "eval.baselines=false"
            ).code
            == 0
        )

    one, two = package.load("one"), package.load("two")

    assert one.attention("the").shape == (1, 4, 3, 3)
    np.testing.assert_array_equal(one.attention("the"), one.attention("the", expert="gpt"))
    with pytest.raises(UsageError, match=r"expert='pairs'.*those with attention: gpt"):
        one.attention("the", expert="pairs")
    with pytest.raises(UsageError, match="expert: several have attention: a, b; name one"):
        two.attention("the")
    assert two.attention("the", expert="b").shape == (1, 4, 3, 3)


def test_counted_models_have_no_attention(charlm, tiny):
    assert charlm("train", "--config", "ngram", "data.source=text.txt", "-q").code == 0

    with pytest.raises(UsageError, match="type 'ngram' has no attention; use a gpt"):
        package.load().attention("the")


def test_a_score_in_a_notebook_colours_each_character_of_bytes():
    nats = np.log(2) * np.array([1.0, 2.0, 0.5, 4.0])

    shown = package.Score("aé\udcff", nats, unit="bytes")._repr_html_()

    assert re.findall(r'title="(.*?)".*?>(.*?)<', shown) == [
        ("1.00 bits", "a"),
        ("2.00 + 0.50 bits", "é"),
        ("4.00 bits", "\\xff"),
    ]
    assert shown.endswith("7.5 bits, 1.875 a byte")
    assert shown.encode()  # a lone surrogate has no bytes


def test_a_score_of_bytes_has_the_bits_of_each_byte():
    data = {"unit": "bytes", "val_fraction": 0.1}
    run = package.train("ngram", "é☃ " * 60, data=data, eval={"baselines": False})

    shown = package.load(run).score("☃")._repr_html_()

    (title,) = re.findall(r'title="(.*?) bits"', shown)
    assert len(title.split(" + ")) == 3
