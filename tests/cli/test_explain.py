import pytest

from charlm.config import load_config, preset_names
from charlm.config.size import parameter_count


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_explained_with_its_parameters(charlm, name):
    result = charlm("explain", "--config", name, "--vocab-size", 65)

    total = next(line for line in result.stdout.splitlines() if line.split()[:1] == ["total"])
    assert (result.code, result.stderr) == (0, "")
    assert total.split()[1] == f"{parameter_count(load_config(name).model, 65):,}"


def test_shapes_follow_the_configuration(charlm, tiny):
    result = charlm("explain", "--config", "tiny.yaml", "train.micro_batch_size=2")

    assert "gpt: V = 31 symbols, T = 8" in result.stdout
    shapes = {line.rsplit("(", 1)[-1] for line in result.stdout.splitlines()}
    assert {"2, 8)", "2, 8, 16)", "2, 2, 8, 8)", "2, 8, 31)", "16, 31)"} <= shapes


def test_symbols_are_counted_in_the_text(charlm, tiny, tmp_path):
    (tmp_path / "text.txt").write_text("abcabc")

    assert "V = 3 symbols" in charlm("explain", "--config", "tiny.yaml").stdout
    assert "V = 256 symbols" in charlm("explain", "-c", "tiny.yaml", "data.unit=bytes").stdout


@pytest.mark.parametrize("source", ["shakespeare", "nope.txt", "-"])
def test_a_text_that_is_not_here_is_assumed_with_a_note(charlm, tiny, source):
    result = charlm("explain", "--config", "tiny.yaml", f"data.source={source}")

    assert result.code == 0
    assert "V = 65 symbols" in result.stdout
    assert result.stderr.startswith(f"charlm: note: {source}")
    assert result.stderr.endswith("assuming 65 symbols\n")


def test_sizes_without_end_are_explained_too(charlm, tiny):
    huge = [f"{key}={'9' * 300}" for key in ("model.n_layer", "train.batch_size")]
    huge += [f"train.max_steps={'9' * 300}", f"model.block_size={'9' * 300}"]

    result = charlm("explain", "--config", "tiny.yaml", *huge, f"model.n_embd={'8' * 300}")

    assert result.code == 0
    assert "EFLOP" in result.stdout
    assert "EiB" in result.stdout


@pytest.mark.parametrize("size", [0, 2**21 + 1, "many"])
def test_a_vocabulary_is_at_most_all_of_unicode(charlm, size):
    result = charlm("explain", "--config", "gpt", "--vocab-size", size)

    assert (result.code, result.stdout) == (2, "")
    assert "'--vocab-size'" in result.error


def test_a_configuration_is_asked_for(charlm):
    result = charlm("explain")

    assert result.code == 2
    assert result.error == "Missing option '--config' / '-c'; see 'charlm explain --help'"


def test_a_run_by_the_clock_has_no_number_of_steps(charlm, tiny):
    result = charlm("explain", "-c", "tiny.yaml", "train.minutes=2.5")

    assert "whole run: 2.5 minutes by the clock" in result.stdout
