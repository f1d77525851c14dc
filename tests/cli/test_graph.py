import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXPRESSION = ("(a*b + c) * f", "a=2", "b=-3", "c=10", "f=-2")
needs_dot = pytest.mark.skipif(not shutil.which("dot"), reason="needs Graphviz")


@pytest.fixture
def no_dot(monkeypatch, tmp_path):
    """No program on the path, so no `dot`."""
    empty = tmp_path / "bin"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    return empty


@pytest.fixture
def fake_dot(no_dot):
    """Put a shell script in the place of `dot`."""

    def put(script: str) -> None:
        program = no_dot / "dot"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    return put


def files() -> list[str]:
    return sorted(str(path) for path in Path().iterdir() if path.name != "bin")


def test_a_tree_is_printed(charlm):
    result = charlm("graph", *EXPRESSION)

    assert (result.code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[4] == "│  │  ├─ a      2      -3 ×    -2 =     6      6"
    assert len(lines) == 11
    assert files() == []


def test_json_is_one_object(charlm):
    result = charlm("graph", *EXPRESSION, "--json")

    assert (result.code, result.stderr) == (0, "")
    graph = json.loads(result.stdout)
    assert [node["label"] for node in graph["nodes"]] == ["a", "b", "*", "c", "+", "f", "*"]
    assert [node["grad"] for node in graph["nodes"]] == [6, -4, -2, -2, -2, 4, 1]
    assert graph["nodes"][0] == {"id": 0, "label": "a", "data": 2.0, "grad": 6.0}
    assert graph["edges"][0] == {"from": 0, "to": 2, "local": -3.0}


def test_an_expression_may_need_no_values(charlm):
    assert charlm("graph", "2 * 3").stdout.splitlines()[1].split() == ["*", "6", "1"]


def test_a_minus_in_front_goes_behind_two(charlm):
    result = charlm("graph", "--json", "--", "-a*b", "a=2", "b=3")

    assert result.code == 0
    assert json.loads(result.stdout)["nodes"][-1]["data"] == -6


@pytest.mark.parametrize("given", ["-a*b", "-2*a*b", "-(a*b)", "-a"])
def test_a_minus_in_front_is_answered_with_how_to_write_it(charlm, given):
    result = charlm("graph", given, "a=2", "b=3")

    assert (result.code, result.stdout) == (2, "")
    assert result.error == (
        f"No such option: {given[:2]}; if {given!r} is an expression, put -- before it, after any "
        "options"
    )


def test_a_misspelt_option_is_answered_with_the_nearest(charlm):
    result = charlm("graph", "a", "a=1", "--jsno")

    assert result.code == 2
    assert result.error.startswith("No such option: --jsno")
    assert "--json" in result.error
    assert result.error.endswith("see 'charlm graph --help'")


def test_an_expression_is_asked_for(charlm):
    result = charlm("graph")

    assert (result.code, result.stdout) == (2, "")
    assert result.error == "Missing argument 'EXPRESSION'; see 'charlm graph --help'"


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["a*b", "a=1"], ["b: no value given; add b=NUMBER"]),
        (
            ["a*B", "a=1", "b=2"],
            [
                "B: no value given; add B=NUMBER",
                "b: not in the expression; use it there or leave it out",
            ],
        ),
        (
            ["a", "*", "b"],
            ["*: expected NAME=NUMBER, such as a=2; put the expression first, in quotes"],
        ),
        (
            ["a*b", "a"],
            ["a: expected NAME=NUMBER, such as a=2; put the expression first, in quotes"],
        ),
        (
            ["a", "2=3"],
            ["2=3: expected NAME=NUMBER, such as a=2; put the expression first, in quotes"],
        ),
        (["a", "a=x"], ["a=x: 'x' is not a number; write one such as 2 or -0.5"]),
        (["a", "a="], ["a=: '' is not a number; write one such as 2 or -0.5"]),
        (["a", "a=1/3"], ["a=1/3: '1/3' is not a number; write one such as 2 or -0.5"]),
        (["a", "a=nan"], ["a=nan: expected a finite number"]),
        (["a", "a=1", "a=2"], ["a=2: a is given twice; keep one"]),
        (["a", "lambda=1"], ["lambda=1: lambda is reserved; choose a name such as lambda_"]),
        (["a^2", "a=1"], ["'a^2': ^ is no operation here; write ** for a power"]),
        (["log(a)", "a=-1"], ["'log(a)' with -1: no real result with a finite slope there; "]),
        (
            ["a", "a=1", "--out", "a.gif"],
            ["a.gif: unknown kind of picture; end it in one of .svg, "],
        ),
        (["a", "a=1", "--out", "a"], ["a: unknown kind of picture; end it in one of .svg, .png, "]),
        (["a", "a=1", "--out", "no/a.svg"], ["no/a.svg: there is no folder no; make it first"]),
    ],
)
def test_a_mistake_is_answered_with_a_line_each(charlm, arguments, lines):
    result = charlm("graph", *arguments)

    assert (result.code, result.stdout) == (2, "")
    for said, line in zip(result.stderr.splitlines(), lines, strict=True):
        assert said.startswith(f"charlm: error: {line}")
    assert files() == []


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_gradient_that_is_no_number_is_named(charlm, options):
    result = charlm("graph", "a * 1e200 * 1e200", "a=1e-300", *options)

    assert (result.code, result.stdout) == (6, "")
    assert result.error == "a: its gradient is inf, not finite; choose other values"


def test_out_writes_the_source_for_graphviz(charlm, no_dot):
    result = charlm("graph", "tanh(x)", "x=0", "--out", "picture.dot")

    assert (result.code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[1].split() == ["tanh", "0", "1"]
    source = Path("picture.dot").read_text(encoding="utf-8")
    assert '0 [label="{ x | data 0 | grad 1 }"]' in source
    assert '0 -> 1 [label="× 1"]' in source
    assert files() == ["picture.dot"]


@pytest.mark.parametrize("name", ["picture.svg", "picture.PNG", "picture.pdf"])
def test_out_writes_what_dot_draws(charlm, fake_dot, name):
    fake_dot('echo "$@"; /bin/cat; echo noise >&2')

    result = charlm("graph", "x + 1", "x=2", "--out", name, "--json")

    assert (result.code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["nodes"][-1]["data"] == 3
    options, digraph = Path(name).read_text(encoding="utf-8").split("\n", 1)
    assert f"-T{name[-3:].lower()}" in options
    assert digraph.startswith("digraph {")
    assert files() == [name]


@needs_dot
@pytest.mark.parametrize(
    ("name", "start"), [("a.svg", b"<?xml"), ("a.png", b"\x89PNG"), ("a.pdf", b"%PDF")]
)
def test_out_is_a_picture_of_its_kind(charlm, name, start):
    result = charlm("graph", "a*b", "a=2", "b=3", "--out", name)

    assert (result.code, result.stderr) == (0, "")
    assert Path(name).read_bytes().startswith(start)
    assert files() == [name]


@pytest.mark.parametrize("name", ["a.svg", "a.dot"])
def test_without_the_package_the_tree_is_still_printed(charlm, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "graphviz", None)

    result = charlm("graph", "a*a", "a=2", "--out", name)

    assert result.code == 5
    assert result.stdout.startswith(" ")
    assert result.error == (
        f"{name}: not drawn: the package graphviz is missing; pip install 'charlm[graph]'"
    )
    assert files() == []


def test_without_the_program_the_tree_is_still_printed(charlm, no_dot):
    result = charlm("graph", "a*a", "a=2", "--out", "a.svg")

    assert result.code == 5
    assert result.stdout == charlm("graph", "a*a", "a=2").stdout
    assert result.error == (
        "a.svg: not drawn: the program dot is missing; install Graphviz from your system's "
        "packages or https://graphviz.org/download, or write a .dot file"
    )
    assert files() == []


@pytest.mark.parametrize(
    ("script", "reason"),
    [('echo "no such renderer" >&2; exit 1', "no such renderer"), ("exit 3", "exit 3")],
)
def test_what_dot_says_when_it_fails_is_repeated(charlm, fake_dot, script, reason):
    fake_dot(f"/bin/cat > /dev/null; {script}")

    result = charlm("graph", "a*a", "a=2", "--out", "a.png")

    assert result.code == 5
    assert result.error == (
        f"a.png: not drawn: dot failed: {reason}; write a .dot file, or try another kind"
    )
    assert files() == []


def test_a_picture_there_is_replaced(charlm):
    Path("a.dot").write_text("old")

    assert charlm("graph", "a*a", "a=2", "--out", "a.dot").code == 0
    assert Path("a.dot").read_text(encoding="utf-8").startswith("digraph")


def test_a_folder_that_may_not_be_written_is_named(charlm, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)  # root may write everywhere

    result = charlm("graph", "a*a", "a=2", "--out", "a.dot")

    assert (result.code, result.stdout[:1]) == (5, " ")
    assert "a.dot: Permission denied; user " in result.error
    assert files() == []


def test_a_folder_is_no_picture(charlm):
    Path("a.dot").mkdir()

    result = charlm("graph", "a*a", "a=2", "--out", "a.dot")

    assert (result.code, result.stdout) == (2, "")
    assert result.error == "a.dot: is a folder; name a file in it"
    assert files() == ["a.dot"]


def test_a_comment_is_refused_before_it_hides_the_next_line(charlm):
    result = charlm("graph", "a # first\n + b", "a=1", "b=2")

    assert (result.code, result.stdout) == (2, "")
    assert "# at character 3; leave it out" in result.error


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (["a=1e400"], "a=1e400: expected a finite number"),
        (["fi=1", "ﬁ=2"], "ﬁ=2: fi is given twice; keep one"),
    ],
)
def test_a_value_is_refused_as_it_was_written(charlm, values, line):
    result = charlm("graph", "a + fi", *values)

    assert (result.code, result.error) == (2, line)


def test_a_graph_is_drawn_without_torch():
    code = (
        "import sys; from charlm.cli.main import run; code = run(sys.argv[1:]);"
        "print(code, sorted({'torch', 'numpy', 'graphviz'} & set(sys.modules)))"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, "graph", "a*a", "a=2"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=200,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n0 []\n")
