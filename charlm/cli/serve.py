"""charlm serve: models over HTTP, with a page to try them on."""

import importlib.util
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from charlm.cli import output
from charlm.cli.options import A_RUN, Device
from charlm.cli.signals import ended_at_once, load_torch
from charlm.errors import MachineError, Setting, UsageError

if TYPE_CHECKING:
    from charlm.serving.service import Served

NEEDED = ("starlette", "uvicorn", "prometheus_client")
SENDABLE = re.compile(r"[!-~]+")  # in a header
LOOPBACK = ("127.0.0.1", "localhost", "::1")
STOPPED = "stopped while the models were loading"


def serve(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN", help="Runs to serve. Default: the newest.", **A_RUN),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8765,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="CHARLM_TOKEN",
            help="What clients must send. Beyond this machine, one is made if needed.",
        ),
    ] = None,
    device: Device = "auto",
    most: Annotated[
        int, typer.Option("--max-chars", min=1, help="Longest text that a client may ask for.")
    ] = 4096,
    at_once: Annotated[
        int, typer.Option(min=1, max=1024, help="Texts of a model that are drawn together.")
    ] = 64,
    waiting: Annotated[
        int, typer.Option(min=0, help="Texts of a model that may wait for a place.")
    ] = 256,
) -> None:
    """Serve models over HTTP, with a page to try them on.

    For example: charlm serve runs/gpt
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        what = f"needs {', '.join(name.replace('_', '-') for name in missing)}"
        raise MachineError("charlm serve", what, "pip install 'charlm[serve]'")
    if not host:
        raise UsageError(Setting("host"), "empty", "use 0.0.0.0 for every address of this machine")
    if token is not None and not SENDABLE.fullmatch(token):
        raise UsageError(Setting("token"), "cannot be sent", "use letters and digits, no spaces")
    local = host in LOOPBACK
    made = secrets.token_urlsafe(24) if token is None and not local else None
    with ended_at_once(STOPPED):
        served = _loaded(runs, device, at_once, waiting, most)
        from charlm.serving.app import LOCAL, Server
        from charlm.serving.running import Runner, address, listen

        server = Server(served, token=token or made, hosts=LOCAL if local else None)
    with listen(host, port) as listening:
        if made:
            output.say(f"token  {made}")
        output.say(f"serving {', '.join(server.served)} at {address(listening)}  (Ctrl-C stops)")
        runner = Runner(server, output.say)
        runner.run(sockets=[listening])  # raises the signal again once all is done


def _loaded(
    runs: list[Path] | None, device: str, at_once: int, waiting: int, most: int
) -> "list[Served]":
    """Load the models."""
    load_torch(STOPPED)
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - 1))  # one core answers clients, but see `Engine`
    from charlm.library import load
    from charlm.serving.service import Served

    models = [load(run, device=device) for run in (runs or (None,))]
    names = [model.run.path.name for model in models]
    if len(set(names)) < len(names):
        where = ", ".join(str(model.run.path) for model in models)
        raise UsageError(where, "two runs have the same name", "rename one")
    return [
        Served(name, model, at_once=at_once, waiting=waiting, most=most, threads=threads)
        for name, model in zip(names, models, strict=True)
    ]
