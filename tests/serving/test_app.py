"""What the server answers besides completions, and whom it refuses."""

import json
import os
import time

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charlm.serving import messages
from charlm.serving.app import Server
from charlm.serving.service import Served
from tests.serving.conftest import serving


def test_scores_are_those_of_python(address, model):
    answer = httpx.post(f"{address}/v1/score", json={"model": "tiny", "input": ["the", "a☃"]})

    first, second = answer.json()["data"]
    expected = model.score(["the", "a☃"])
    assert (first["nats"], first["unknown"]) == (expected[0].total_nats, 0)
    assert (second["bits_per_char"], second["unknown"]) == (expected[1].bits_per_char, 1)
    assert sum(second["bits"]) == pytest.approx(expected[1].total_bits, abs=1e-3)


def test_what_comes_next_is_that_of_python(address, model):
    asked = {"model": "tiny", "prompt": "the q", "top": 3}
    found = httpx.post(f"{address}/v1/next", json=asked).json()["next"]

    expected = list(model.next("the q").items())[:3]
    assert [(one["text"], one["p"]) for one in found] == expected


def test_metrics_count(address):
    httpx.get(f"{address}/health")
    text = httpx.get(f"{address}/metrics").text

    assert 'charlm_requests_total{path="/health",status="200"}' in text
    assert 'charlm_texts_drawn_now{model="tiny"} 0.0' in text


def test_the_page_may_only_reach_its_own_server(address):
    answer = httpx.get(address)

    assert "connect-src 'self'" in answer.headers["content-security-policy"]
    assert "http" not in answer.text.replace("http://www.w3.org/2000/svg", "")  # a name


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": ""}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_other_sites_are_refused(address, headers, status):
    for path in ("/", "/v1/models", "/metrics"):
        assert httpx.get(f"{address}{path}", headers=headers).status_code == status


def test_a_token_is_asked_for(model):
    with serving(Server([Served("tiny", model)], token="secret", hosts=None)) as address:

        def get(path, **headers):
            return httpx.get(f"{address}{path}", headers=headers).status_code

        assert [get(path) for path in ("/", "/health", "/v1/models", "/metrics")] == [
            200,
            200,
            401,
            401,
        ]
        assert get("/v1/models", Authorization="Bearer secre") == 401
        assert get("/v1/models", Authorization="Bearer secret", Host="other.example") == 200


def test_too_much_is_refused_with_a_time_to_try_again(model):
    served = Served("tiny", model, at_once=2, waiting=1)
    with serving(Server([served])) as address:
        asked = {"model": "tiny", "prompt": "a", "n": 2, "max_tokens": 4000, "stream": True}
        with httpx.stream("POST", f"{address}/v1/completions", json=asked) as first:
            lines = first.iter_lines()
            next(lines)  # both places are taken now
            answer = httpx.post(f"{address}/v1/completions", json=asked)
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
            assert answer.json()["error"]["type"] == "rate_limit_error"
        answer = httpx.post(f"{address}/v1/completions", json={**asked, "n": 4})
        assert (answer.status_code, answer.json()["error"]["message"]) == (
            400,
            "4 texts: at most 3 in one request",
        )
        asked = {"model": "tiny", "prompt": "a", "n": 3, "max_tokens": 5}
        assert httpx.post(f"{address}/v1/completions", json=asked).status_code == 200


def test_a_body_that_is_too_large_or_too_slow_is_refused(address, monkeypatch):
    answer = httpx.post(f"{address}/v1/score", content=b"x" * (messages.MOST_BODY + 1))
    assert answer.status_code == 413
    monkeypatch.setattr(messages, "BODY_SECONDS", 0.05)

    def slow():
        yield b"{"
        time.sleep(0.3)
        yield b"}"

    assert httpx.post(f"{address}/v1/score", content=slow()).status_code == 408


def test_no_file_can_be_reached(address):
    for path in ("/..%2f..%2fetc/passwd", "/page.html", "/static/../app.py", "/v1/models/../../x"):
        answer = httpx.get(f"{address}{path}")
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")
    answer = httpx.get(f"{address}/v1/completions")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["error"]["message"].startswith("GET is not for /v1/completions")
    answer = httpx.post(f"{address}/v1/chat/completions", json={})
    assert answer.json()["error"]["message"] == "a character model has no chat; use /v1/completions"


def test_what_comes_next_may_leave_out_strange_characters(address, model):
    asked = {"model": "tiny", "prompt": "the☃ q", "top": 1}
    assert httpx.post(f"{address}/v1/next", json=asked).status_code == 400
    (found,) = httpx.post(f"{address}/v1/next", json={**asked, "unknown": "skip"}).json()["next"]

    assert found["p"] == max(model.next("the q").values())


def test_what_takes_long_is_bounded(address):
    def message(path, **asked):
        answer = httpx.post(f"{address}/v1/{path}", json={"model": "tiny", **asked})
        assert answer.status_code == 400
        return answer.json()["error"]["message"]

    long = "a" * 5000
    assert "at most 65536 characters" in message("score", input=[long] * 14)
    assert "at most 4096 characters" in message(
        "completions", prompt=long, echo=True, logprobs=0, max_tokens=1
    )
    assert "at most 1000 characters in each" in message("completions", prompt="a", stop=long)


def test_a_mistake_of_the_server_is_no_silence(model, monkeypatch):
    served = Served("tiny", model)
    asked = {"model": "tiny", "prompt": "a", "max_tokens": 5, "seed": 1}
    with serving(Server([served])) as address:

        def post(path, **more):
            return httpx.post(f"{address}/v1/{path}", json={**asked, **more})

        with monkeypatch.context() as broken:
            broken.setattr(served.engine._together, "step", lambda: 1 / 0)
            found = post("completions")
            streamed = post("completions", stream=True)
        with monkeypatch.context() as broken:
            broken.setattr(served, "scores", lambda asked: 1 / 0)
            scored = httpx.post(f"{address}/v1/score", json={"model": "tiny", "input": "a"})
        assert (found.status_code, found.json()["error"]["message"]) == (500, "division by zero")
        assert streamed.status_code == 200  # another set of rows was begun
        assert (scored.status_code, scored.json()["error"]["type"]) == (500, "server_error")
        text = post("completions").json()["choices"][0]["text"]
        assert text == model.generate("a", seed=1, max_new_chars=5, temperature=1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=10,
)
FIELDS = st.sampled_from(
    [
        "prompt",
        "max_tokens",
        "temperature",
        "top_p",
        "n",
        "stop",
        "seed",
        "stream",
        "logprobs",
        "echo",
        "user",
        "best_of",
        "suffix",
        "logit_bias",
        "top_k",
        "min_p",
        "repetition_penalty",
        "allow",
        "unknown",
        "input",
        "top",
        "stream_options",
    ]
)


@pytest.fixture(scope="module")
def brief(model):
    """The address of a server of short texts."""
    with serving(Server([Served("tiny", model, most=50)])) as address:
        yield address


# The server's thread uses `random` while a strategy draws.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
@settings(max_examples=int(os.environ.get("HOSTILE_REQUESTS", "60")))
@given(st.sampled_from(["completions", "score", "next"]), st.dictionaries(FIELDS, JSON, max_size=4))
def test_no_request_is_the_servers_mistake(brief, path, fields):
    body = json.dumps(
        {"model": "tiny", "max_tokens": 3, **fields}
        if path == "completions"
        else {"model": "tiny", **fields}
    )
    answer = httpx.post(f"{brief}/v1/{path}", content=body)

    assert answer.status_code < 500
    if answer.status_code >= 400:
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "fields",
    [
        '"stop": [' + ",".join(['"x"'] * 100_000) + "]",
        '"stop": "\\u0000\\u001b[2J"',
        '"seed": 1' + "0" * 5000,
        '"max_tokens": 1e400',
        '"temperature": NaN',
        '"n": -9223372036854775809',
        '"top_p": 1e-400',
        '"logit_bias": {"50256": -100}',
        '"prompt": {"a": 1}',
        '"prompt": [[1, 2], [3]]',
        '"model": "tiny", "model": 3',
        '"\\u0000": 1',
    ],
    ids=range(12),
)
def test_what_is_out_of_all_bounds_is_told_in_a_sentence(brief, fields):
    body = '{"model": "tiny", "prompt": "a", ' + fields + "}"
    answer = httpx.post(f"{brief}/v1/completions", content=body.encode())

    message = answer.json()["error"]["message"]
    assert answer.status_code == 400
    assert 0 < len(message) < 300
    assert message.isprintable()


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[" * 100_000, b"\xff", b"null", b'{"model": "\\ud800"}']
)
def test_a_body_that_is_no_request_is_refused(address, body):
    assert httpx.post(f"{address}/v1/completions", content=body).status_code in (400, 404)
