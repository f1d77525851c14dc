"""The thread that draws texts outlives what goes wrong with one of them."""

import threading

from charlm.sampling.generate import Context
from charlm.serving import engine
from charlm.serving.requests import CompletionRequest


def test_a_prompt_that_cannot_be_read_fails_alone_and_is_told(served, monkeypatch):
    def read(model, prompt):
        if len(prompt) == 5:
            raise RuntimeError("out of memory")
        return Context(model, prompt)

    monkeypatch.setattr(engine, "Context", read)
    jobs, done = [], threading.Semaphore(0)
    for prompt in ("the", "quick", "dog "):
        asked = CompletionRequest(model="tiny", prompt=prompt, max_tokens=8, seed=1)
        jobs += served.jobs(asked, done.release)

    served.engine.submit(jobs)

    for _ in jobs:
        assert done.acquire(timeout=20), "a text has neither ended nor failed"
    assert [str(job.error) for job in jobs] == ["None", "out of memory", "None"]
    assert [job.ended for job in jobs] == ["length", None, "length"]
