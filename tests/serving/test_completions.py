"""OpenAI's own client against a served run."""

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models_are_listed(client):
    assert [one.id for one in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "charlm"
    with pytest.raises(openai.NotFoundError, match="no model 'big' here; there is tiny"):
        client.completions.create(model="big", prompt="the")


def test_a_text_is_the_one_that_python_gets(client, model):
    found = client.completions.create(model="tiny", prompt="the ", seed=3, max_tokens=30)

    assert found.choices[0].text == model.generate("the ", seed=3, max_new_chars=30, temperature=1)
    assert found.choices[0].finish_reason == "length"
    assert found.usage.model_dump(
        include={"prompt_tokens", "completion_tokens", "total_tokens"}
    ) == {
        "prompt_tokens": 4,
        "completion_tokens": 30,
        "total_tokens": 34,
    }


def test_a_stream_has_the_same_text(client):
    asked = {"model": "tiny", "prompt": ["the ", "dog"], "n": 3, "seed": 5, "max_tokens": 20}
    whole = client.completions.create(**asked)

    texts, ends, usage = [""] * 6, [None] * 6, None
    options = {"include_usage": True}
    for part in client.completions.create(**asked, stream=True, stream_options=options):
        usage = part.usage or usage
        for choice in part.choices:
            texts[choice.index] += choice.text
            ends[choice.index] = choice.finish_reason or ends[choice.index]

    assert texts == [one.text for one in whole.choices]
    assert ends == ["length"] * 6
    assert (usage.completion_tokens, whole.usage.completion_tokens) == (120, 120)


def test_the_samples_of_one_request_have_seeds_that_follow(client, model):
    found = client.completions.create(model="tiny", prompt="a", n=3, seed=8, max_tokens=12)

    alone = [model.generate("a", seed=seed, max_new_chars=12, temperature=1) for seed in (8, 9, 10)]
    assert [one.text for one in found.choices] == alone


def test_a_stop_text_ends_a_text(client):
    asked = {"model": "tiny", "prompt": "the ", "seed": 3, "max_tokens": 200}
    whole = client.completions.create(**asked).choices[0].text
    stop = whole[20:22]

    (found,) = client.completions.create(**asked, stop=[stop, "☃"[:0] or "zq"]).choices

    assert found.text == whole[: whole.index(stop)]
    assert found.finish_reason == "stop"


def test_logprobs_are_those_of_the_model(client, model):
    (found,) = client.completions.create(
        model="tiny", prompt="the ", seed=3, max_tokens=8, logprobs=2, echo=True
    ).choices

    logprobs = found.logprobs
    assert "".join(logprobs.tokens) == found.text
    assert found.text.startswith("the ")
    assert logprobs.text_offset == list(range(12))
    assert logprobs.token_logprobs[0] is None
    for i in range(1, 12):
        expected = model.next(found.text[:i])
        assert logprobs.token_logprobs[i] == pytest.approx(
            math.log(expected[found.text[i]]), abs=1e-4
        )
        best = list(expected)[:2]
        assert set(logprobs.top_logprobs[i]) == {*best, found.text[i]}


def test_a_prompt_alone_can_be_scored(client):
    (found,) = client.completions.create(
        model="tiny", prompt="the dog", max_tokens=0, logprobs=0, echo=True
    ).choices

    assert found.text == "the dog"
    assert len(found.logprobs.token_logprobs) == 7


def test_texts_do_not_notice_others(client, model):
    def ask(seed):
        asked = {"max_tokens": 10 + seed, "temperature": 0.5 + seed % 3 / 2}
        found = client.completions.create(
            model="tiny", prompt="the"[: seed % 4], seed=seed, **asked
        )
        return found.choices[0].text

    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(ask, range(32)))

    alone = [
        model.generate(
            "the"[: seed % 4], seed=seed, max_new_chars=10 + seed, temperature=0.5 + seed % 3 / 2
        )
        for seed in range(32)
    ]
    assert together == alone


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        ({"prompt": "☃"}, 400, "U+2603"),
        ({"prompt": 3}, 400, "prompt: "),
        ({"prompt": "a", "temperature": -1}, 400, "temperature: "),
        ({"prompt": "a", "max_tokens": 5000}, 400, "max_tokens: at most 4096 characters here"),
        ({"prompt": "a", "stop": ""}, 400, "empty"),
        ({"prompt": "a", "stop": ["a"] * 65}, 400, "stop: at most 64 texts"),
        ({"prompt": "a", "frequency_penalty": 0.5}, 400, "frequency_penalty"),
        ({"prompt": "a", "best_of": 3}, 400, "best_of"),
        ({"prompt": "a", "temprature": 1}, 400, "temprature"),
    ],
)
def test_mistakes_are_told_in_one_sentence(address, asked, status, message):
    answer = httpx.post(f"{address}/v1/completions", json={"model": "tiny", **asked})

    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (status, "invalid_request_error")
    assert message in error["message"]
    assert "\n" not in error["message"]


def test_the_client_raises_the_error_of_its_kind(client):
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="tiny", prompt="a", temperature=9)


def test_texts_that_are_streamed_together_have_their_parts_less_often(address, served, monkeypatch):
    step = served.engine._step
    monkeypatch.setattr(served.engine, "_step", lambda woken: time.sleep(0.005) or step(woken))

    def parts_of_a_text(n):
        body = {"model": "tiny", "prompt": "a", "max_tokens": 100, "stream": True, "n": n}
        with httpx.stream("POST", f"{address}/v1/completions", json=body, timeout=200) as answer:
            return sum(line.startswith("data: {") for line in answer.iter_lines()) / n

    assert parts_of_a_text(16) < parts_of_a_text(1) / 2


def test_a_client_that_goes_away_frees_its_place(address, served, monkeypatch):
    step = served.engine._step

    def slow_step(woken):  # else a paused client could find the whole text drawn
        time.sleep(0.005)
        step(woken)

    monkeypatch.setattr(served.engine, "_step", slow_step)
    body = {"model": "tiny", "prompt": "a", "max_tokens": 4000, "stream": True}
    before = served.engine.characters
    with httpx.stream("POST", f"{address}/v1/completions", json=body) as answer:
        lines = answer.iter_lines()  # when it is gone, so is the client
        assert next(lines).startswith("data: {")
        assert served.engine.load[0] == 1
        assert served.streamed == 1

    for _ in range(1000):
        if served.engine.load == (0, 0):
            break
        httpx.get(f"{address}/health")
    assert served.engine.load == (0, 0)
    assert served.engine.characters - before < 3900
    assert served.streamed == 0
    assert json.loads(httpx.get(f"{address}/health").text) == {"status": "ok"}
