"""A served model under load: real HTTP from another process."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from benches.common import AsJson, ratio, report

CLIENTS = (1, 8, 64)


def serving(
    run: Annotated[Path, typer.Argument(help="A run, such as runs/gpt.")],
    chars: Annotated[int, typer.Option(min=1, help="Of each text.")] = 500,
    rounds: Annotated[int, typer.Option(min=0, help="Of each, in turn.")] = 3,
    requests: Annotated[int, typer.Option(min=0, help="Short requests after that.")] = 0,
    broken: Annotated[int, typer.Option(min=0, help="Of these, broken off in the middle.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Time clients of a served run against `charlm sample -n`, which draws as many texts at once."""
    if broken > requests:
        raise typer.BadParameter(f"--broken {broken}: there are {requests} requests")
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
            figures = asyncio.run(_compared(address, run, chars, rounds)) if rounds else {}
            if requests:
                figures |= asyncio.run(_flooded(address, requests, broken, server.pid))
            figures["load"] = " ".join(f"{load:.1f}" for load in os.getloadavg())
        finally:
            server.terminate()
        said = server.stderr.read().splitlines()
        figures["lines in the server's log"] = float(len(said))
        for line in said[:20]:
            print(line, file=sys.stderr)
    report(figures, as_json)


@contextlib.asynccontextmanager
async def _client(address: str):
    """Give a client and what all of its requests ask for."""
    import httpx

    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:
        (model, *_) = (await client.get("/v1/models")).json()["data"]
        yield client, {"model": model["id"], "prompt": "\n", "stream": True}


async def _compared(address: str, run: Path, chars: int, rounds: int) -> dict[str, float | str]:
    """Time clients and the command in turn: A B A B."""
    figures: dict[str, float | str] = {}
    async with _client(address) as (client, asked):
        await _text(client, {**asked, "max_tokens": 1100})  # loads what the first texts need
        for count in CLIENTS:
            bodies = [{**asked, "max_tokens": chars, "seed": i} for i in range(count)]
            served, drawn, firsts = [], [], []
            for _ in range(rounds):
                since = time.perf_counter()
                firsts += await asyncio.gather(*(_text(client, body) for body in bodies))
                served.append(count * chars / (time.perf_counter() - since))
                drawn.append(_drawn(run, chars, count))
            clients = f"{count} client{'s' * (count > 1)}"
            figures[f"{clients} (characters/s)"] = median(served)
            figures[f"sample -n {count} (characters/s)"] = median(drawn)
            figures[f"{clients}: share of that"] = ratio(served, drawn)
            figures[f"{clients}: seconds to the first character, median"] = median(firsts)
    return figures


async def _flooded(address: str, requests: int, broken: int, pid: int) -> dict[str, float | str]:
    """Send many short requests; compare the server's memory with that after a tenth of them."""
    import psutil

    memory, failed, since = psutil.Process(pid).memory_info, 0, time.perf_counter()
    sizes: list[int] = []
    every = requests // broken if broken else 0
    async with _client(address) as (client, asked):
        for part in range(10):
            numbers = range(part * requests // 10, (part + 1) * requests // 10)
            failed += await _many(client, asked, numbers, every)
            now = memory()  # without files, whose pages come and go with what else runs
            sizes.append(now.rss - getattr(now, "shared", 0))
        open_now = await _still_drawn(client)
    return {
        "short requests": float(requests),
        "broken off": float(len(range(0, requests, every)) if every else 0),
        "answered otherwise than 200": float(failed),
        "texts still drawn or waiting after them": open_now,
        "MiB after each tenth": " ".join(f"{size / 2**20:.0f}" for size in sizes),
        "memory after them, of that after three tenths": sizes[-1] / sizes[2],
        "seconds for them": time.perf_counter() - since,
    }


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


async def _many(client: "object", asked: dict[str, object], numbers: range, every: int) -> int:
    """Send short requests, 32 at a time, break off one in `every` (0: none); return how many failed."""
    places, failed = asyncio.Semaphore(32), 0

    async def one(i: int) -> None:
        nonlocal failed
        breaks = every > 0 and i % every == 0
        body = {**asked, "max_tokens": 2000 if breaks else 10, "seed": i, "stream": breaks}
        async with places:
            if breaks:
                async with client.stream("POST", "/v1/completions", json=body) as answer:  # type: ignore[attr-defined]
                    async for _ in answer.aiter_lines():
                        return
            answer = await client.post("/v1/completions", json=body)  # type: ignore[attr-defined]
            failed += answer.status_code != 200

    await asyncio.gather(*map(one, numbers))
    return failed


async def _still_drawn(client: "object") -> float:
    """Return how many texts have a place or wait for one, after a second in which they may end."""
    await asyncio.sleep(1)
    text = (await client.get("/metrics")).text  # type: ignore[attr-defined]
    counted = [line for line in text.splitlines() if line.startswith("charlm_texts_")]
    return sum(float(line.split()[-1]) for line in counted)
