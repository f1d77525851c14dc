"""What a text or a user's word may hold never becomes a command to the terminal, nor markup."""

import contextlib
import io
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlm.backprop.graph import as_dot
from charlm.backprop.value import Value
from charlm.cli.escaping import printable
from charlm.cli.main import run
from charlm.errors import CheckpointError, Problem, UsageError
from tests.fuzz import targets
from tests.fuzz.inputs import amiss, fuzzed
from tests.fuzz.targets import LINE_BREAKS, Terminal, assert_tame, terminals

HOSTILE = {
    "clear": "\x1b[2J\x1b[H",
    "colour": "\x1b[31mred",
    "title": "\x1b]0;owned\x07",
    "link": "\x1b]8;;https://example.org\x1b\\click\x1b]8;;\x1b\\",
    "clipboard": "\x1b]52;c;cm0gLXJmIC8=\x07",
    "report": "\x1b[6n",
    "device": "\x1b[c",
    "reset": "\x1bc",
    "charset": "\x1b(0",
    "string": "\x1bPq#0;2;0;0;0\x1b\\",
    "privacy": "\x1b^secret\x1b\\",
    "program": "\x1b_Gi=1\x1b\\",
    "paste": "\x1b[200~rm -rf /\n\x1b[201~",
    "screen": "\x1b[?1049h",
    "scroll": "\x1b[1;1r",
    "half": "\x1b",
    "c1-csi": "\x9b2J",
    "c1-osc": "\x9d0;owned\x9c",
    "c1-dcs": "\x90q\x9c",
    "c1-nel": "a\x85b",
    "c1-all": "".join(map(chr, range(0x80, 0xA0))),
    "c0-all": "".join(map(chr, range(0x20))),
    "nul": "a\0b",
    "bell": "\a" * 3,
    "backspace": "safe\b\b\b\bevil",
    "return": "charlm: error: no\rcharlm: all is well",
    "delete": "\x7f",
    "form-feed": "a\fb",
    "vertical": "a\vb",
    "separators": "\x1c\x1d\x1e\x1f",
    "shift": "\x0e\x0f",
    "substitute": "\x1a",
    "line": "a\u2028b",
    "paragraph": "a\u2029b",
    "override": "user\u202etxt.exe",
    "embedding": "\u202aa\u202b\u202c",
    "isolate": "\u2066 \u2067\u2068\u2069",
    "half-pair": "\ud800",
    "other-half": "\udfff",
    "not-utf-8": "\udcff",
    "script": "<script>alert(1)</script>",
    "image": "<img src=x onerror=alert(1)>",
    "entity": "&lt;b&gt;&#x3c;",
    "cdata": "]]><b/>",
    "quotes": "\"'`",
    "record": "{a|b}<c> \\n\\l\\",
    "newline": "one\ncharlm: error: two",
    "long": "x" * 5000,
    "marks": "e" + "\u0301" * 200,
    "zero-width": "a\u200b\u200d\u2060b",
    "left-to-right": "a\u200eb",
    "right-to-left": "a\u200fb",
    "arabic-mark": "a\u061cb",
    "soft-hyphen": "a\u00adb",
    "no-break": "a\ufeffb",
    "tags": "a\U000e0041\U000e007fb",
    "filler": "\u3164\uffa0",
    "smuggled": "a\ufe00\ufe01\U000e0100\U000e0101",
}
EVERY = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())


@EVERY
def test_a_hostile_text_is_tame_on_a_terminal_however_it_is_said(text):
    targets.terminal(text.encode("utf-8", "surrogatepass"))
    assert_tame(printable(text))


@fuzzed(200)
@given(st.binary(max_size=40) | st.text(max_size=20).map(str.encode) | amiss("terminal"))
def test_a_text_of_any_content_is_tame_on_a_terminal(data):
    targets.terminal(data)


@EVERY
def test_a_problem_is_one_line_whatever_it_quotes(text):
    error = UsageError.of(Problem(text, "wrong"), Problem("more"))

    assert len(error.lines()) == 2
    assert not set(error.lines()[0]) & set(LINE_BREAKS)
    assert str(error).splitlines() == error.lines()


@EVERY
def test_a_commands_refusal_of_a_hostile_word_is_one_tame_line(text):
    commands = [
        ["train", "--config", text],
        ["train", "--config", "bigram", f"{text}=1"],
        ["train", "--config", "bigram", f"model.{text}=1"],
        ["train", "--config", "bigram", f"run.device={text}"],
        ["sample", "--run", text],
        ["eval", "--run", text],
        ["compare", text],
        ["compare", "--protocol", text],
        ["explain", "--config", text],
        ["graph", text],
        ["graph", "1", f"{text}=1"],
        ["graph", "a", f"a={text}"],
        ["graph", "1", "--out", text],
        ["data", text],
        [text],
        [f"--{text}"],
    ]
    for command in commands:
        if not set("\0\ud800\udfff").isdisjoint("".join(command)):
            continue  # no shell passes these
        with terminals() as (out, err):
            code = run(command)
        assert code in (2, 4, 5), command
        assert_tame(out.getvalue())
        assert_tame(err.getvalue())
        assert err.getvalue().startswith("charlm: error: "), command
        assert len(err.getvalue().splitlines()) == 1, command


ALPHABET = sorted(
    c for c in {*"the quick\n", *"".join(HOSTILE.values())} if c not in targets.HALVES
)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Return a run whose alphabet is hostile, trained on a text of nothing else."""
    from tests.conftest import TINY

    place = tmp_path_factory.mktemp("hostile")
    text = "".join(ALPHABET) * 20
    (place / "text.txt").write_bytes(text.encode())
    config = TINY.replace("text.txt", str(place / "text.txt")).replace(
        "max_steps: 6", "max_steps: 3"
    )
    (place / "tiny.yaml").write_text(config)
    out = place / "run"
    assert run(["train", "--config", str(place / "tiny.yaml"), "--out", str(out), "-q"]) == 0
    return out


@pytest.mark.parametrize(
    "command",
    [
        ["sample", "--max-new-chars", "200", "--seed", "1", "--temperature", "3"],
        ["sample", "--max-new-chars", "200", "--seed", "1", "--show-alternatives"],
        ["sample", "--max-new-chars", "20", "--seed", "1", "--json", "--show-alternatives"],
        ["sample", "--max-new-chars", "20", "--seed", "1", "-n", "2", "-p", "\x1b[2J\u202e"],
        ["sample", "--seed", "1", "-p", "\x1b[2J\x99\u9999"],
        ["sample", "--seed", "1", "--allow", "\u9999\x1b]0;x\a"[:1]],
        ["eval"],
        ["eval", "--per-char", "-"],
        ["eval", "--file", "\x1b[2J.txt"],
        ["eval", "--file", "unknown\u202e.txt"],
        ["eval", "--file", "unknown\u202e.txt", "--unknown", "uniform"],
    ],
    ids=lambda command: "-".join(w.strip("-") for w in command if w.isascii() and w.isprintable()),
)
def test_a_run_of_a_hostile_alphabet_is_tame_on_a_terminal(hostile, command, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    Path("\x1b[2J.txt").write_text("the\x1b[2J the")
    Path("unknown\u202e.txt").write_text("the \u9999\u2067\x99\n the")
    with terminals() as (out, err):
        code = run([*command, "--run", str(hostile)])

    assert code in (0, 2, 3), err.getvalue()
    assert out.getvalue() + err.getvalue()
    # Colours are charlm's own; where they are asked for, nothing but them is left.
    for said in (out.getvalue(), err.getvalue()):
        for colour in ("0", "31", "33", "36") if "--show-alternatives" in command else ():
            said = said.replace(f"\x1b[{colour}m", "")
        assert_tame(said)


def test_a_comparison_and_an_explanation_of_hostile_names_are_tame(hostile):
    place = Path("\x1b[2J\u202e<b>")
    shutil.copytree(hostile, place)
    for command in (["compare", str(place)], ["explain", "--config", f"{place}/config.yaml"]):
        with terminals() as (out, err):
            assert run(command) == 0, err.getvalue()
        assert out.getvalue()
        assert_tame(out.getvalue())
        assert_tame(err.getvalue())


BAR = re.compile(r"\r[^\r\n]*\r|\r")  # drawn and taken off a terminal
NAME = "\x1b[2J\u200e\n\u202e\u00ad<b>"


@pytest.mark.parametrize("piped", [True, False], ids=["piped", "terminal"])
def test_a_name_is_one_tame_word_in_every_line_wherever_it_is_printed(tmp_path, piped):
    from tests.conftest import TINY

    Path(NAME).write_text("the quick brown fox\n" * 100)
    Path("tiny.yaml").write_text(TINY.replace("text.txt", json.dumps(str(tmp_path / NAME))))
    place, text = str(Path("runs") / NAME), str(tmp_path / NAME)
    Path("runs").mkdir()
    commands = [
        (0, "train", "--config", "tiny.yaml", "--out", place, "train.sample_every=3"),
        (0, "train", "--resume", "--out", place, "train.max_steps=8"),
        (0, "eval", "--run", place),
        (0, "eval", "--run", place, "--file", text),
        (0, "eval", "--run", place, "--file", text, "--per-char", "-"),
        (0, "compare", place),
        (0, "compare"),
        (0, "verify", place),
        (0, "explain", "--config", f"{place}/config.yaml"),
        (0, "explain", "--config", "mixture", f"model.experts.old.run={place}"),
        (0, "data", "info", text),
        (0, "baselines", text),
        (0, "sample", "--run", place, "--max-new-chars", "5"),
        (2, "sample", "--run", place, "--checkpoint", NAME),
        (4, "sample", "--run", f"{place}{NAME}"),
        (3, "--debug", "eval", "--run", place, "--file", f"{text}{NAME}"),
        (2, "train", "--config", NAME),
        (4, "verify", f"{place}/samples"),
        (0, "runs"),
        (0, "runs", "rm", "--yes", place),
    ]
    for code, *command in commands:
        out, err = (io.StringIO(), io.StringIO()) if piped else (Terminal(), Terminal())
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            assert run(command) == code, (command, err.getvalue())
        said = out.getvalue() + err.getvalue()
        assert said, command
        assert_tame(said if piped else BAR.sub("", said))
        assert not re.search(r"^\\u202e", said, re.MULTILINE), (
            command
        )  # what a new line begins with


def test_notes_quote_what_a_checkpoint_says_of_itself_in_one_tame_line(hostile):
    place = Path("copy")
    shutil.copytree(hostile, place)
    for path in (place / "checkpoints").glob("*/MANIFEST.json"):
        manifest = json.loads(path.read_text())
        del manifest["files"]["MANIFEST.json"]  # as the first version wrote it, not vouched for
        manifest["environment"]["torch"] = "\x1b[2J\n\u202e"
        path.write_text(json.dumps(manifest))
    with terminals() as (out, err):
        run(["train", "--resume", "-q", "--out", str(place), "train.max_steps=4"])

    assert "not bit-exact" in err.getvalue()
    assert_tame(out.getvalue())
    assert_tame(err.getvalue())


DRAWN = {
    name: text[:100]
    for name, text in HOSTILE.items()
    if text.strip() and all(c.isprintable() or c == "\n" for c in text)  # what XML can say
}


@pytest.mark.skipif(shutil.which("dot") is None, reason="the program dot is not installed")
@pytest.mark.parametrize("text", DRAWN.values(), ids=DRAWN.keys())
def test_the_label_of_a_value_is_never_markup_in_a_picture(text):
    result = Value(2.0, label=text) * Value(3.0, label="b")
    result.backward()

    source = as_dot(result).source
    done = subprocess.run(["dot", "-Tsvg"], input=source.encode(), capture_output=True, timeout=200)

    assert done.returncode == 0, done.stderr
    drawing = ET.fromstring(done.stdout)
    elements = {element.tag.rpartition("}")[2] for element in drawing.iter()}
    assert elements <= {"svg", "g", "title", "polygon", "polyline", "path", "text"}
    nodes = [g for g in drawing.iter() if g.get("class") == "node"]
    assert len(nodes) == 3
    said = "".join("".join(g.itertext()) for g in nodes).replace("\xa0", " ")
    assert "".join(text.split()) in "".join(said.split())


PICTURE = "digraph graph rankdir LR node shape record label"


@EVERY
def test_no_word_of_a_label_stands_outside_of_its_quotes(text):
    result = Value(2.0, label=text) + Value(3.0, label=text)
    result.backward()

    # A backslash takes the meaning of the quote after it.
    outside = re.sub(r'"(\\.|[^"\\])*"', "", as_dot(result).source, flags=re.DOTALL)

    assert '"' not in outside
    assert set(re.findall(r"[a-zA-Z]+", outside)) == set(re.findall("[a-zA-Z]+", PICTURE))


def test_a_refusal_is_an_error_of_its_kind_still():
    assert CheckpointError("a\nb").lines() == ["a\\nb"]
