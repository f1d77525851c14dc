import json
import math
from pathlib import Path

import pytest


def evaluate(charlm, *arguments: object) -> dict:
    result = charlm("eval", "--json", *arguments)
    assert (result.code, result.stderr) == (0, ""), result.stderr
    return json.loads(result.stdout)


def test_json_names_the_protocol_and_every_unit(charlm, trained):
    score = evaluate(charlm)

    assert list(score) == [
        "split",
        "protocol",
        "chars",
        "loss_nats",
        "bits_per_char",
        "perplexity",
        "run",
        "step",
    ]
    assert (score["split"], score["protocol"], score["chars"]) == ("val", "windows", 257)
    assert (score["run"], score["step"]) == ("runs/tiny", 6)
    assert score["bits_per_char"] == pytest.approx(score["loss_nats"] / math.log(2))
    assert score["perplexity"] == pytest.approx(math.exp(score["loss_nats"]))


def test_the_score_is_the_one_that_training_reported(charlm, trained):
    records = map(json.loads, (trained / "metrics.jsonl").read_text().splitlines())
    best = min(record["loss_nats"] for record in records if record["kind"] == "eval")

    assert evaluate(charlm)["loss_nats"] == best


def test_a_file_is_scored_like_the_part_with_the_same_text(charlm, trained):
    text = Path("text.txt").read_text()
    Path("val.txt").write_text(text[-258:])

    given, part = evaluate(charlm, "--file", "val.txt"), evaluate(charlm)

    assert given["loss_nats"] == part["loss_nats"]
    assert (given["split"], given["chars"]) == ("val.txt", 257)


def test_the_training_part_is_another(charlm, trained):
    assert evaluate(charlm, "--split", "train")["chars"] == 2321


def test_a_shorter_window_is_allowed_and_a_longer_one_is_not(charlm, trained):
    assert evaluate(charlm, "--block-size", 2)["loss_nats"] != evaluate(charlm)["loss_nats"]

    result = charlm("eval", "--block-size", 9)
    assert result.code == 2
    assert result.error == "--block-size 9: this model looks at most at 8 characters"


def test_people_read_one_line(charlm, trained):
    result = charlm("eval")

    score = evaluate(charlm)
    assert result.stdout == (
        f"val: {score['loss_nats']:.4f} nats, {score['bits_per_char']:.4f} bits a character, "
        f"perplexity {score['perplexity']:.3f}\n"
    )
    assert result.stderr == "257 scored once in windows of 8, runs/tiny step 6\n"


def test_a_part_that_was_not_cut_is_answered_with_its_fraction(charlm, trained):
    result = charlm("eval", "--split", "test")

    assert result.code == 3
    assert result.error.endswith("it was made with data.test_fraction 0.0")


@pytest.mark.parametrize(
    ("content", "core"),
    [
        (b"", "empty (0 bytes)"),
        (b"t", "one character cannot be scored"),
        ("the é".encode(), "'é' (U+00E9)"),
        (b"the \xff", "not UTF-8 at byte 4 (0xff), line 1"),
    ],
)
def test_a_file_that_cannot_be_scored_is_refused(charlm, trained, content, core):
    Path("bad.txt").write_bytes(content)

    result = charlm("eval", "--file", "bad.txt")

    assert (result.code, result.stdout) == (3, "")
    assert result.error.startswith("bad.txt: ")
    assert core in result.error


def test_a_file_without_a_name_is_not_the_validation_part(charlm, trained):
    result = charlm("eval", "--file", "")

    assert (result.code, result.stdout) == (2, "")
    assert result.error.startswith("--file: expected a file")


def test_an_unknown_part_is_refused(charlm, trained):
    result = charlm("eval", "--split", "dev")

    assert result.code == 2
    assert "'--split'" in result.error
    assert "'train', 'val', 'test'" in result.error


def test_scoring_leaves_nothing_behind(charlm, trained):
    before = set(Path().rglob("*"))

    evaluate(charlm, "--file", "text.txt")

    assert set(Path().rglob("*")) == before


def test_bytes_are_called_bytes(charlm, tiny):
    charlm("train", "--config", "tiny.yaml", "-q", "data.unit=bytes")

    assert " bits a byte, " in charlm("eval").stdout
