"""How a command must fail: `refused(code, *arguments)`."""

from pathlib import Path

import pytest


def everything() -> set[Path]:
    return set(Path().rglob("*"))


@pytest.fixture
def refused(charlm, tiny):
    """Run a command that must fail; check how it fails and return what it said, line by line."""

    def command(code: int, *arguments: object) -> list[str]:
        before = everything()
        result = charlm(*arguments)
        lines = result.stderr.splitlines()
        assert result.code == code, result.stderr
        assert all(line.startswith("charlm: error: ") for line in lines), result.stderr
        assert lines
        assert "Traceback" not in result.stderr
        assert result.stdout == ""
        assert everything() == before
        return [line.removeprefix("charlm: error: ") for line in lines]

    return command
