import json

import pytest

from charlm.config import Config, load_config, preset_names, preset_text


def test_every_preset_names_itself_with_its_purpose(charlm):
    result = charlm("config", "list")

    lines = result.stdout.splitlines()
    assert (result.code, result.stderr) == (0, "")
    assert [line.split()[0] for line in lines] == preset_names()
    for line, name in zip(lines, preset_names(), strict=True):
        assert line.endswith("  " + preset_text(name).splitlines()[0].removeprefix("# "))
        assert len(line.split()) > 3
        assert len(line) <= 80  # on a terminal, without a break


@pytest.mark.parametrize("name", preset_names())
def test_what_is_shown_is_a_file_to_start_from(charlm, tmp_path, name):
    result = charlm("config", "show", name)

    (tmp_path / "mine.yaml").write_text(result.stdout, encoding="utf-8")

    assert result.stdout.startswith("# ")
    assert load_config("mine.yaml") == load_config(name)


@pytest.mark.parametrize("name", ["gtp", "../pyproject", "gpt.yaml", ""])
def test_an_unknown_preset_is_answered_with_the_nearest_and_how_to_list_all(charlm, name):
    result = charlm("config", "show", name)

    assert (result.code, result.stdout) == (2, "")
    hint = "did you mean 'gpt'? " if name == "gtp" else ""
    assert result.error == (
        f"preset {name!r}: there is none of this name; {hint}see charlm config list"
    )


def test_the_schema_is_the_one_of_the_configuration(charlm):
    result = charlm("config", "schema")

    assert (result.code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == Config.model_json_schema()


@pytest.mark.parametrize("command", ["train", "explain", "gradcheck", "lr-find"])
def test_a_text_in_place_of_a_configuration_is_answered_with_a_command(charlm, tmp_path, command):
    (tmp_path / "my text.txt").write_text("the quick brown fox\n")

    result = charlm(command, "-c", "my text.txt")

    assert result.code == 2
    assert result.error == (
        "my text.txt: is not a configuration; to train on it: "
        "charlm train -c gpt data.source='my text.txt'"
    )
