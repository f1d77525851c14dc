"""Entry point of the `charlm` command and of `python -m charlm`."""

import os
import signal

# Ctrl-C during imports ends the process without a traceback. A signal that was ignored from the
# start stays ignored: a shell without job control ignores SIGINT for `charlm train &`.
_interruptible = signal.getsignal(signal.SIGINT) != signal.SIG_IGN
if _interruptible:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
# A request to save is ignored until there is something to save.
if hasattr(signal, "SIGUSR1"):
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)

# torch takes an empty name as the current folder; compiled code must not be kept or run there.
if not os.environ.get("TORCHINDUCTOR_CACHE_DIR", "unset"):
    del os.environ["TORCHINDUCTOR_CACHE_DIR"]

from charlm.cli import main as cli  # noqa: E402


def main() -> None:
    """Run the command line and exit with its code."""
    if _interruptible:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main()


if __name__ == "__main__":
    main()
