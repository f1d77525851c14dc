"""Where the `charlm` command and `python -m charlm` begin."""

import os
import signal

# Ctrl-C while this is still being imported ends it as it ends any program, without a traceback.
signal.signal(signal.SIGINT, signal.SIG_DFL)
# To be asked to save before there is anything to save ends nothing.
if hasattr(signal, "SIGUSR1"):
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)

# An empty name is the current folder to torch, where no compiled code is to be kept and run.
if not os.environ.get("TORCHINDUCTOR_CACHE_DIR", "unset"):
    del os.environ["TORCHINDUCTOR_CACHE_DIR"]

from charlm.cli import main as cli  # noqa: E402


def main() -> None:
    """Run the command line and exit with its code."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    cli.main()


if __name__ == "__main__":
    main()
