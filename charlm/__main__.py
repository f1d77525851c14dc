"""Let `python -m charlm` do what the `charlm` command does."""

from charlm.cli.main import main

if __name__ == "__main__":
    main()
