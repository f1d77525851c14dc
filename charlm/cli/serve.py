"""charlm serve: models over HTTP, with a page to try them on."""

import contextlib
import secrets
import socket
from pathlib import Path
from typing import Annotated

import typer

from charlm.cli import output
from charlm.cli.options import A_RUN, Device
from charlm.cli.signals import load_torch
from charlm.errors import MachineError, UsageError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN", help="Runs to serve. Default: the newest.", **A_RUN),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8765,
    token: Annotated[
        str | None,
        typer.Option(help="What clients must send. Beyond this machine, one is made if needed."),
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
    try:
        import uvicorn
        from starlette.applications import Starlette  # noqa: F401
    except ImportError:
        what = "needs Starlette and uvicorn"
        raise MachineError("charlm serve", what, 'pip install "charlm[serve]"') from None
    load_torch()
    from charlm.library import load
    from charlm.serving.app import LOCAL, Server
    from charlm.serving.service import Served

    models = [load(run, device=device) for run in (runs or (None,))]
    names = [model.run.path.name for model in models]
    if len(set(names)) < len(names):
        where = ", ".join(str(model.run.path) for model in models)
        raise UsageError(where, "two runs have the same name", "rename one")
    local = host in LOOPBACK
    if token is None and not local:
        token = secrets.token_urlsafe(24)
        output.say(f"token  {token}")
    served = [
        Served(name, model, at_once=at_once, waiting=waiting, most=most)
        for name, model in zip(names, models, strict=True)
    ]
    server = Server(served, token=token, hosts=LOCAL if local else None)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        mend = "choose another --host or --port"
        raise MachineError(f"{host}:{port}", error.strerror or str(error), mend) from None
    shown, port = f"[{host}]" if ":" in host else host, listening.getsockname()[1]
    output.say(f"serving {', '.join(names)} at http://{shown}:{port}  (Ctrl-C stops)")
    config = uvicorn.Config(
        server.app,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=30,
        limit_concurrency=1000,
    )
    with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again once all is done
        uvicorn.Server(config).run(sockets=[listening])
