"""What docs/backprop.md shows is what comes out."""

import contextlib
import io
import re
import shlex
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs" / "backprop.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks():
    return BLOCK.findall(DOCS.read_text(encoding="utf-8"))


def run_blocks(page, names):
    """Run the Python of a page in a namespace; return how many outputs were compared."""
    printed, compared = "", 0
    for language, content in BLOCK.findall(page):
        if language == "python":
            assert printed == "", "nothing on the page shows this"
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(content, "a page", "exec"), names)
            printed = output.getvalue()
        elif language == "text":
            assert printed == content
            printed, compared = "", compared + 1
    return compared


def test_each_block_of_code_prints_what_stands_below_it():
    assert run_blocks(DOCS.read_text(encoding="utf-8"), {}) >= 8


def test_each_command_prints_what_stands_below_it(charlm):
    commands = [content for language, content in blocks() if language == "console"]
    for content in commands:
        command, _, expected = content.partition("\n")
        _, name, *arguments = shlex.split(command)
        assert name == "charlm"

        result = charlm(*arguments)

        assert (result.code, result.stdout) == (0, expected)
    assert commands
