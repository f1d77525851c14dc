"""The thread that draws texts outlives what goes wrong with one of them."""

import threading
import time

import pytest
import torch

from charlm.sampling.generate import Context
from charlm.serving import engine
from charlm.serving.requests import CompletionRequest
from charlm.serving.service import Served


def test_a_prompt_that_cannot_be_read_fails_alone_and_is_told(served, monkeypatch):
    def read(model, prompt):
        if len(prompt) == 5:
            raise RuntimeError("out of memory")
        return Context(model, prompt)

    monkeypatch.setattr(engine, "Context", read)
    jobs, done = [], threading.Semaphore(0)
    for prompt in ("the", "quick", "dog "):
        asked = CompletionRequest(model="tiny", prompt=prompt, max_tokens=8, seed=1)
        jobs += served.jobs(asked, lambda job: done.release())

    served.engine.submit(jobs)

    for _ in jobs:
        assert done.acquire(timeout=200), "a text has neither ended nor failed"
    assert [str(job.error) for job in jobs] == ["None", "out of memory", "None"]
    assert [job.ended for job in jobs] == ["length", None, "length"]


def test_a_text_that_is_not_waited_for_gives_its_place_in_the_queue(model, monkeypatch):
    served = Served("tiny", model, at_once=1, waiting=1)
    # The first text is not drawn to its end before the others have come.
    go, step = threading.Event(), served.engine._step
    monkeypatch.setattr(served.engine, "_step", lambda woken: go.wait() and step(woken))
    try:
        drawn, waiting, refused = (
            served.jobs(
                CompletionRequest(model="tiny", prompt="a", max_tokens=4000), lambda job: None
            )
            for _ in range(3)
        )
        served.engine.submit(drawn)
        while served.engine.load != (1, 0):
            time.sleep(0.001)
        served.engine.submit(waiting)
        with pytest.raises(engine.Busy):
            served.engine.submit(refused)

        served.engine.cancel(waiting)

        served.engine.submit(refused)
        served.engine.cancel([*drawn, *refused])
    finally:
        go.set()
        served.engine.close()


def test_a_step_of_few_texts_leaves_a_core_to_the_clients(model, monkeypatch):
    used, threads = [], [2]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    served = Served("tiny", model, threads=3)
    step = served.engine._step
    monkeypatch.setattr(
        served.engine, "_step", lambda woken: used.append(threads[-1]) or step(woken)
    )
    try:
        for texts in (engine.MANY - 1, engine.MANY, 1):
            asked = CompletionRequest(model="tiny", prompt="a", max_tokens=1, n=texts)
            done = threading.Semaphore(0)
            served.engine.submit(served.jobs(asked, lambda job: done.release()))  # noqa: B023
            for _ in range(texts):
                assert done.acquire(timeout=200)
    finally:
        served.engine.close()

    assert used == [2, 3, 2]
