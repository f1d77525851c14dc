"""From the name of a preset or a file, and KEY=VALUE overrides, to a checked `Config`.

All problems of a configuration are reported at once.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from charlm.config.base import TYPES
from charlm.config.problems import EXPERTS, depth, did_you_mean, experts_of, problems_of, suggestion
from charlm.config.schema import Config
from charlm.config.settle import Settling, without_effect
from charlm.config.yaml_file import (
    MAX_BYTES,
    Document,
    dump_yaml,
    plain_scalar,
    read_yaml,
    refuse_large,
)
from charlm.errors import Phrase, Problem, Setting, UsageError, number_of

MOST = 20  # problems that are reported at once
YAML = (".yaml", ".yml")

_HALF = re.compile("[\ud800-\udfff]")  # half a surrogate pair, written as "\\ud800" in quotes
_A_SECTION = re.compile(
    rf"""^[\s{{"']*({"|".join(Config.model_fields)})["']?\s*:""".encode(), re.MULTILINE
)


class NotAConfiguration(UsageError):
    """The file named as a configuration is something else, most likely a text."""


def load_config(name: str, overrides: Sequence[str] = (), notes: list[str] | None = None) -> Config:
    """Load a preset or a YAML file, and apply KEY=VALUE overrides to it; later ones win.

    Values that nobody asked for give way to those given, such as a preset's warm-up to
    `train.max_steps`; `notes` receives a line for each.

    Raises:
        NotAConfiguration: The file is something else, such as a text.
        UsageError: The file is missing or unreadable, or a key or value is wrong.
    """
    preset = _names_preset(name)
    data = preset_text(name).encode() if preset else _read(name)
    if data.strip() and Path(name).suffix not in ("", *YAML) and not _A_SECTION.search(data):
        mend = Phrase("to train on it, set {}", Setting("data.source", name))
        raise NotAConfiguration(name, "is not a configuration", mend)
    return read_config(data, name, overrides, notes, preset)


def read_config(
    data: bytes,
    where: str,
    overrides: Sequence[str] = (),
    notes: list[str] | None = None,
    preset: bool = False,
) -> Config:
    """Check the content of a YAML file, with KEY=VALUE overrides, or raise UsageError.

    The error lists all problems, at most `MOST`. `where` is the file's name, for messages; `preset`
    tells that its values are not the user's own, and `notes` is as in `load_config`.
    """
    document = read_yaml(data, where)
    if document.value is None:
        mend = "or start from a preset: charlm config show gpt"
        raise UsageError(where, "empty", f"write at least 'model: {{type: bigram}}', {mend}")
    if not isinstance(document.value, dict):
        kind = "list" if isinstance(document.value, list) else "single value"
        raise UsageError(where, f"expected a mapping such as 'model: ...', got a {kind}")
    for key, line in document.lines.items():
        if _HALF.search(key):  # pydantic fails on these keys, even as unknown ones
            raise UsageError(f"{where}:{line}", "a key must be a plain word, such as model")
    problems = [*_apply(document, overrides)]
    settled = [*Settling(document, preset).notes(), *without_effect(document)]
    config = _checked(document, problems)
    if notes is not None:
        notes += settled
    return config


def changed(
    config: Config, overrides: Sequence[str] = (), where: str = "the configuration"
) -> Config:
    """Check a configuration that was built in code, and apply KEY=VALUE overrides to it.

    `model_copy` checks nothing: use this before its result is written or trained. Raise UsageError
    if a value is wrong, two values contradict each other, or it is too large for a file. `where`
    says where the values come from, for messages.
    """
    document = Document(where, config.model_dump())
    result = _checked(document, [*_apply(document, overrides)])
    refuse_large(dump_yaml(result.model_dump()).encode(), where)
    return result


def _checked(document: Document, problems: list[Problem]) -> Config:
    try:
        config = Config.model_validate(document.value)
    except ValidationError as error:
        found = error.errors()
        for one in found[
            :MOST
        ]:  # slow: each unknown key is searched for in all sections and experts
            problems += problems_of(one, document)
        if len(found) > MOST:
            more = number_of(len(found) - MOST, "more problem")
            problems.append(Problem(document.where, more, "correct these first"))
    if problems:
        raise UsageError.of(*dict.fromkeys(problems))
    return config


def preset_names() -> list[str]:
    """Name the presets that ship with charlm, in alphabetical order."""
    return sorted(path.stem for path in _preset_folder().glob("*.yaml"))


def preset_text(name: str) -> str:
    """Return the commented YAML of a preset, or raise UsageError if there is none of that name."""
    if name not in preset_names():
        mend = f"{did_you_mean(name, preset_names())} see charlm config list".lstrip()
        raise UsageError(f"preset {name!r}", "there is none of this name", mend)
    return (_preset_folder() / f"{name}.yaml").read_text(encoding="utf-8")


def _preset_folder() -> Path:
    package = Path(__file__).parent.parent
    shipped = package / "presets"  # in a wheel; a checkout has them in configs/
    return shipped if shipped.is_dir() else package.parent / "configs"


def _looks_like_path(name: str) -> bool:
    return Path(name).suffix in YAML or "/" in name or "\\" in name


def _names_preset(name: str) -> bool:
    return not _looks_like_path(name) and name in preset_names()


def _read(name: str) -> bytes:
    path = Path(name)
    use = "name a YAML file or a preset"
    try:
        if path.is_dir():
            raise UsageError(name, "is a directory", use)
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)  # one byte over the limit is enough to refuse
    except FileNotFoundError:
        folder = path.parent if path.parent.is_dir() else Path()
        nearby = sorted(str(p) for p in folder.glob("*.y*ml"))[:3]
        hint = did_you_mean(name, [*(nearby if _looks_like_path(name) else []), *preset_names()])
        files = f"; YAML files there: {', '.join(nearby)}" if nearby else ""
        mend = f"{hint} see charlm config list{files}".lstrip()
        raise UsageError(name, "no such file or preset", mend) from None
    except OSError as error:
        raise UsageError(name, f"cannot be read: {error.strerror}", use) from None


def _apply(document: Document, overrides: Sequence[str]) -> Iterator[Problem]:
    """Set each KEY=VALUE in the document, and yield a problem for each wrong one."""
    known = list(experts_of(document))
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        *path, leaf = key.split(".", depth(key.split(".")) - 1)
        if not equals or not key:
            yield Problem(repr(override), "expected KEY=VALUE, such as train.max_steps=500")
        elif not path or path[0] not in Config.model_fields or not leaf or not key.isascii():
            hint = suggestion([], key.rpartition(".")[2], document)
            yield Problem(override, "unknown key", hint)
        else:
            keys = document.value
            for name in path:
                if isinstance(keys, dict):
                    if keys.get(name) is None:
                        keys[name] = {}
                    keys = keys[name]
            if isinstance(keys, dict):  # if not, as in `train: 3`, the file is refused later
                keys[leaf] = plain_scalar(text)
                document.overrides[key] = override
    yield from _unknown_experts(document, known)


def _unknown_experts(document: Document, known: Sequence[str]) -> Iterator[Problem]:
    """Remove experts that overrides created without a model: their names are misspelt."""
    owner = TYPES.get(str(document.at(["model", "type"])))
    experts = experts_of(document) if owner and "experts" in owner.model_fields else {}
    for name in [name for name in experts if name not in known]:
        given = (document.at([*EXPERTS, name, *key]) for key in (["run"], ["model", "type"]))
        if not isinstance(experts[name], dict) or any(value is not None for value in given):
            continue
        del experts[name]
        hint = did_you_mean(name, known) or f"experts: {', '.join(known) or 'none'};"
        mend = f"{hint} a new one needs its run or its model.type"
        for key, override in document.overrides.items():
            if key.startswith(f"model.experts.{name}."):
                yield Problem(override, f"unknown expert {name!r}", mend)
