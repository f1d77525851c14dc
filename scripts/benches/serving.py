"""A served model under load: real HTTP from another process."""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benches.common import AsJson, report

CLIENTS = (1, 8, 64)


def serving(
    run: Annotated[Path, typer.Argument(help="A run, such as runs/gpt.")],
    chars: Annotated[int, typer.Option(min=1, help="Of each text.")] = 500,
    rounds: Annotated[int, typer.Option(min=1, help="Of each, in turn.")] = 3,
    requests: Annotated[
        int, typer.Option(min=0, help="Short requests after that, one in fifty broken off.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Time clients of a served run against `charlm sample -n`, which draws as many texts at once."""
    with subprocess.Popen(
        [sys.executable, "-m", "charlm", "serve", str(run), "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as server:
        assert server.stderr
        address = ""
        while not address:
            line = server.stderr.readline()
            if not line:
                sys.exit("bench: error: the server did not start")
            address = line.split(" at ")[1].split()[0] if " at http" in line else ""
        try:
            figures = asyncio.run(_figures(address, run, chars, rounds, requests, server.pid))
        finally:
            server.terminate()
    report(figures, as_json)


async def _figures(
    address: str, run: Path, chars: int, rounds: int, requests: int, pid: int
) -> dict[str, float | str]:
    import httpx
    import psutil

    figures: dict[str, float | str] = {}
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:
        models = (await client.get("/v1/models")).json()["data"]
        asked = {"model": models[0]["id"], "prompt": "\n", "stream": True}
        await _text(client, {**asked, "max_tokens": 1100})  # loads what the first texts need
        for count in CLIENTS:
            bodies = [{**asked, "max_tokens": chars, "seed": i} for i in range(count)]
            served, drawn, firsts = [], [], []
            for _ in range(rounds):  # in turn
                since = time.perf_counter()
                firsts += await asyncio.gather(*(_text(client, body) for body in bodies))
                served.append(count * chars / (time.perf_counter() - since))
                drawn.append(_drawn(run, chars, count))
            clients = f"{count} client{'s' * (count > 1)}"
            figures[f"{clients} (characters/s)"] = median(served)
            figures[f"sample -n {count} (characters/s)"] = median(drawn)
            figures[f"{clients}: share of that"] = median(served) / median(drawn)
            figures[f"{clients}: seconds to the first character, median"] = median(firsts)
        if requests:
            memory, failed = psutil.Process(pid).memory_info, 0
            for part in range(10):
                failed += await _many(client, asked, requests // 10)
                if part == 0:
                    warm = memory().rss
            figures["short requests"] = float(requests)
            figures["answered otherwise than 200"] = float(failed)
            figures["memory after them, of that after a tenth"] = memory().rss / warm
    return figures


async def _text(client: "object", body: dict[str, object]) -> float:
    """Draw a text; return the seconds to its first character."""
    since, first = time.perf_counter(), 0.0
    async with client.stream("POST", "/v1/completions", json=body) as answer:  # type: ignore[attr-defined]
        async for line in answer.aiter_lines():
            if not first and line.startswith("data: {"):
                first = time.perf_counter() - since
    return first


def _drawn(run: Path, chars: int, count: int) -> float:
    """Return the characters a second of `charlm sample -n`, without its start."""
    command = [sys.executable, "-m", "charlm", "sample", "--run", str(run), "-n", str(count)]
    command += [
        "--max-new-chars",
        str(chars),
        "--json",
        "-q",
        "--temperature",
        "1",
        "--prompt",
        "\n",
    ]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    texts = [json.loads(line) for line in out.splitlines()]
    return sum(one["chars"] for one in texts) / sum(one["seconds"] for one in texts)


async def _many(client: "object", asked: dict[str, object], requests: int) -> int:
    """Send short requests, 32 at a time, and break off one in fifty; return how many failed."""
    places, failed = asyncio.Semaphore(32), 0

    async def one(i: int) -> None:
        nonlocal failed
        body = {**asked, "max_tokens": 10, "seed": i, "stream": i % 50 == 0}
        async with places:
            if i % 50 == 0:
                body["max_tokens"] = 2000
                async with client.stream("POST", "/v1/completions", json=body) as answer:  # type: ignore[attr-defined]
                    async for _ in answer.aiter_lines():
                        return
            answer = await client.post("/v1/completions", json=body)  # type: ignore[attr-defined]
            failed += answer.status_code != 200

    await asyncio.gather(*map(one, range(requests)))
    return failed
