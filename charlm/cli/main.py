"""The `charlm` command: its verbs, and how each error becomes a line and an exit code.

Each verb imports what it needs when it runs, so `charlm --help` does not wait for torch.
"""

import os
import signal
import sys
import traceback
from types import TracebackType
from typing import Annotated

import typer

from charlm import __version__
from charlm.cli import (
    baselines,
    compare,
    compress,
    config,
    data,
    doctor,
    evaluate,
    explain,
    export,
    gradcheck,
    graph,
    importing,
    lr_find,
    novelty,
    output,
    report,
    runs,
    sample,
    score,
    serve,
    train,
    verify,
)
from charlm.cli.exits import flush_stdout, mistake_of, silence_stdout
from charlm.cli.signals import set_unless_ignored
from charlm.cli.spelling import spelling
from charlm.cli.usage import mistake_in_words
from charlm.cli.verb import Verb
from charlm.errors import MachineError

app = typer.Typer(
    name="charlm",
    help="Train, sample and score character-level language models, from the bigram table to a GPT.",
    epilog="Start with: charlm train --config quickstart",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("train", cls=Verb)(train.train)
app.command("sample", cls=Verb)(sample.sample)
app.command("score", cls=Verb)(score.score)
app.command("eval", cls=Verb)(evaluate.evaluate)
app.command("baselines", cls=Verb)(baselines.baselines)
app.command("novelty", cls=Verb)(novelty.novelty)
app.command("compare", cls=Verb)(compare.compare)
app.command("report", cls=Verb)(report.report)
app.command("compress", cls=Verb)(compress.compress)
app.command("decompress", cls=Verb)(compress.decompress)
app.command("export", cls=Verb)(export.export)
app.command("import", cls=Verb)(importing.import_checkpoint)
app.command("serve", cls=Verb)(serve.serve)
app.command("lr-find", cls=Verb)(lr_find.lr_find)
app.command("explain", cls=Verb)(explain.explain)
app.command("gradcheck", cls=Verb)(gradcheck.gradcheck)
app.command("graph", cls=graph.GraphCommand)(graph.graph)
app.command("verify", cls=Verb)(verify.verify)
app.command("doctor", cls=Verb)(doctor.doctor)
app.add_typer(runs.app, name="runs")
app.add_typer(data.app, name="data")
app.add_typer(config.app, name="config")


def _version(wanted: bool) -> None:
    if wanted:
        output.result(f"charlm {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", help="Show a traceback for every error.", envvar="CHARLM_DEBUG"),
    ] = False,
) -> None:
    os.environ.pop("CHARLM_DEBUG", None)  # it may say that it is off
    if debug:
        os.environ["CHARLM_DEBUG"] = "1"


def main() -> None:
    """Run the command line and exit with its code."""
    output.never_refuse_a_character()
    sys.excepthook = _say_bug
    try:
        code = run(sys.argv[1:])
    finally:
        flush_stdout()
    # Ctrl-C while the interpreter shuts down ends it without a traceback.
    set_unless_ignored(signal.SIGINT, signal.SIG_DFL)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; each error becomes a line on stderr."""
    try:
        os.getcwd()  # without one, the next imports would end the process
    except FileNotFoundError:
        output.error("this folder: it was removed; change to another")
        return MachineError.exit_code
    try:
        try:
            code = app(arguments, standalone_mode=False, prog_name="charlm")
        except (typer.TyperException, typer.Abort) as error:
            code = _usage(error)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (BrokenPipeError, SystemExit) as error:
        # typer answers a closed pipe with exit 1
        if not isinstance(error.__context__ or error, BrokenPipeError):
            raise
        silence_stdout()
        return output.CLOSED_PIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        mistake = mistake_of(error)
        if not mistake:
            raise
        if os.environ.get("CHARLM_DEBUG"):
            output.say(traceback.format_exc().rstrip())
        for problem in mistake.lines(spelling):
            output.error(problem)
        return mistake.exit_code


def _say_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of a bug, whose message may quote a hostile text."""
    output.say("".join(traceback.format_exception(kind, error, trace)).rstrip())


def _usage(error: Exception) -> int:
    """Print a mistake in the command itself as one line, or help where a verb is missing."""
    context, message = getattr(error, "ctx", None), mistake_in_words(error)
    if "\n" in message:  # no arguments at all: the message is the help text
        output.result(message)
    else:
        where = context.command_path if context else "charlm"
        output.error(f"{message}; see '{where} --help'")
    return 2
