"""From a preset's name or a file, and KEY=VALUE overrides, to a checked `Config`.

Every problem of a configuration is reported at once, each with its file, line and key, and an
unknown key is answered with the name that was probably meant.
"""

import difflib
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from charlm.config.schema import (
    Config,
    ExpertConfig,
    ModelConfig,
    SingleModelConfig,
    TrainConfig,
    shown,
)
from charlm.config.yaml_file import Document, plain_scalar, read_yaml
from charlm.errors import Problem, UsageError

# Names that readers of nanoGPT and its relatives will try, and where the same thing lives here.
ALIASES = {
    "always_save_checkpoint": "train.save_every",
    "backend": "no key: one process so far",
    "batch": "train.batch_size",
    "bias": "no key: neither style has biases",
    "block": "model.block_size",
    "context_length": "model.block_size",
    "d_model": "model.n_embd",
    "dataset": "data.source",
    "decay_lr": "train.schedule (constant)",
    "epochs": "train.max_steps",
    "eval_interval": "train.eval_every",
    "eval_iters": "eval.max_chars",
    "eval_only": "no key: charlm eval scores a run",
    "gradient_accumulation_steps": "train.micro_batch_size",
    "input": "data.source",
    "learning_rate_decay": "train.schedule",
    "log_interval": "no key: metrics.jsonl has a record of every step",
    "lr": "train.learning_rate",
    "lr_decay_iters": "train.max_steps (the schedule ends with it)",
    "max_iters": "train.max_steps",
    "max_new_tokens": "sample.max_new_chars",
    "num_samples": "no key: the option -n of charlm sample",
    "out_dir": "run.out",
    "start": "sample.prompt",
    "steps": "train.max_steps",
    "wandb_log": "no key: metrics.jsonl has a record of every step",
    "warmup_iters": "train.warmup_steps",
}

_MODELS = {get_args(m.model_fields["type"].annotation)[0]: m for m in get_args(ModelConfig)}
_SINGLE = {kind: model for kind, model in _MODELS.items() if model in get_args(SingleModelConfig)}

MOST = 20  # problems that are told at once

_OF_A_KEY = re.compile(r"([a-z_]+(?:\.[a-z_]+)*): ")  # how the message of a conflict may begin
_HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair, which "\\ud800" in quotes writes
_EXPERTS = ("model", "experts")
_AN_EXPERT = "'counts: {model: {type: ngram}}'"

KeyPath = tuple[str, ...]  # from the outermost section inwards; dotted, it is a key


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """Load a preset or a YAML file, and apply KEY=VALUE overrides to it.

    Args:
        name: The name of a preset, or the path of a YAML file.
        overrides: Such as `train.max_steps=500`; later ones win.

    Raises:
        UsageError: The file is missing or unreadable, or any key or value is wrong.
    """
    where, data = _read(name)
    return read_config(data, where, overrides)


def read_config(data: bytes, where: str, overrides: Sequence[str] = ()) -> Config:
    """Check the bytes of a YAML file, with overrides, into a `Config`; errors name it `where`.

    Raises:
        UsageError: Any key or value is wrong; all problems at once, or the first `MOST`.
    """
    document = read_yaml(data, where)
    if document.value is None:
        raise UsageError(
            f"{where}: empty; the least is 'model: {{type: bigram}}', or start from a preset: "
            "charlm config show gpt"
        )
    if not isinstance(document.value, dict):
        kind = "list" if isinstance(document.value, list) else "single value"
        raise UsageError(f"{where}: expected a mapping such as 'model: ...', got a {kind}")
    for key, line in document.lines.items():
        if _HALF.search(key):  # pydantic takes no such key, not even as unknown
            raise UsageError(f"{where}:{line}: a key must be a plain word, such as model")
    origins, problems = _apply(document, overrides)
    _fill_in(document.value)  # not before: an override to null means what it means in a file
    try:
        config = Config.model_validate(document.value)
    except ValidationError as error:
        found = error.errors()
        for one in found[:MOST]:  # each unknown key is looked for in every section and expert
            problems += _problems(one, document, where, origins)
        if len(found) > MOST:
            problems.append(f"{where}: {len(found) - MOST:,} more problems; mend these first")
    if problems:
        raise UsageError.of(*map(Problem, dict.fromkeys(problems)))
    return config


def preset_names() -> list[str]:
    """Name the presets that ship with charlm, in alphabetical order."""
    return sorted(path.stem for path in _preset_folder().glob("*.yaml"))


def preset_text(name: str) -> str:
    """Return the commented YAML of a preset.

    Raises:
        UsageError: There is no preset of that name.
    """
    return _read_preset(name).decode()


def _preset_folder() -> Path:
    package = Path(__file__).parent.parent
    shipped = package / "presets"  # in a wheel; a checkout has them in configs/
    return shipped if shipped.is_dir() else package.parent / "configs"


def _read(name: str) -> tuple[str, bytes]:
    path = Path(name)
    looks_like_path = path.suffix in (".yaml", ".yml") or "/" in name or "\\" in name
    if not looks_like_path and name in preset_names():
        return name, _read_preset(name)
    try:
        if path.is_dir():
            raise UsageError(f"{name}: is a directory; name a YAML file or a preset")
        with path.open("rb") as file:
            return name, file.read((1 << 20) + 1)  # one byte over the limit is enough to refuse
    except FileNotFoundError:
        folder = path.parent if path.parent.is_dir() else Path()
        nearby = sorted(str(p) for p in folder.glob("*.y*ml"))[:3]
        choices = [*nearby, *preset_names()] if looks_like_path else preset_names()
        near = difflib.get_close_matches(name, choices, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        files = f"; YAML files there: {', '.join(nearby)}" if nearby else ""
        raise UsageError(f"{name}: not found; {hint}presets: charlm config list{files}") from None
    except OSError as error:
        reason = f"cannot be read: {error.strerror}; name a YAML file or a preset"
        raise UsageError(f"{name}: {reason}") from None


def _read_preset(name: str) -> bytes:
    if name not in preset_names():
        near = difflib.get_close_matches(name, preset_names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"preset {name!r}: not one of {', '.join(preset_names())}{hint}")
    return (_preset_folder() / f"{name}.yaml").read_bytes()


def _fill_in(values: dict[str, Any]) -> None:
    """Take a section whose keys are all commented out, which reads as null, for its defaults."""

    def fill(mapping: dict[str, Any], keys: Iterable[str]) -> None:
        mapping.update({key: {} for key in keys if key in mapping and mapping[key] is None})

    fill(values, Config.model_fields)
    if isinstance(values.get("model"), dict):
        fill(values["model"], ["experts"])
    experts = _experts(values)
    fill(experts, list(experts))
    for expert in experts.values():
        if isinstance(expert, dict):
            fill(expert, ["train"])


def _experts(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a mixture's experts are given as; nothing where they are no mapping."""
    model = values.get("model")
    experts = model.get("experts") if isinstance(model, dict) else None
    return experts if isinstance(experts, dict) else {}


def _apply(document: Document, overrides: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Set each KEY=VALUE in the document; return the overrides by key, and what is wrong."""
    origins: dict[str, str] = {}
    problems: list[str] = []
    known = list(_experts(document.value))
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        *path, leaf = _split(key)
        if not equals or not key:
            problems.append(f"{override!r}: expected KEY=VALUE, such as train.max_steps=500")
        elif not path or path[0] not in Config.model_fields or not leaf or not key.isascii():
            hint = _suggest((), key.rpartition(".")[2], document)
            problems.append(f"{override!r}: unknown key {key!r}{hint}")
        else:
            keys = document.value
            for name in path:
                if isinstance(keys, dict):
                    if keys.get(name) is None:
                        keys[name] = {}
                    keys = keys[name]
            if isinstance(keys, dict):  # a file that says `train: 3` is refused for that
                keys[leaf] = plain_scalar(text)
                origins[key] = override
    return origins, problems + list(_unknown_experts(document, known, origins))


def _split(key: str) -> list[str]:
    """Split a dotted key into the names of the sections around it and its own.

    Only experts nest, so `data.source.x` is an unknown key of `data`.
    """
    if not key.startswith(".".join((*_EXPERTS, ""))):
        return key.split(".", 1)
    *path, last = key.split(".", 3)
    section, dot, leaf = last.partition(".")
    within = len(path) == 3 and dot and section in ("model", "train")
    return [*path, section, leaf] if within else [*path, last]


def _unknown_experts(
    document: Document, known: Sequence[str], origins: Mapping[str, str]
) -> Iterator[str]:
    """Take back experts that overrides made but do not describe: their names are misspelt."""
    experts = _experts(document.value)
    if not experts or document.value["model"].get("type") != "mixture":
        return
    for name in [name for name in experts if name not in known]:
        expert = experts[name]
        model = expert.get("model") if isinstance(expert, dict) else None
        described = isinstance(model, dict) and "type" in model
        if not isinstance(expert, dict) or "run" in expert or described:
            continue
        del experts[name]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}" if near else f"experts: {', '.join(known) or 'none'}"
        for key, override in origins.items():
            if key.startswith(f"model.experts.{name}."):
                yield (
                    f"{override!r}: model.experts.{name}: unknown expert; {hint}; "
                    "a new one needs its run or its model.type"
                )


def _path(location: Sequence[int | str]) -> KeyPath:
    """Return the key that pydantic's location means, as the file has it.

    pydantic adds the chosen member of a union, at the end or behind `model`, and `[key]` for a name.
    """
    path = [str(part) for part in location]
    if path[:1] == ["model"]:
        del path[1:2]
    if tuple(path[:2]) != _EXPERTS:
        return tuple(path[:2])
    if path[3:4] == ["model"]:
        del path[4:5]
    if path[3:4] == ["[key]"]:
        del path[3]
    return tuple(path[: 5 if path[3:4] in (["model"], ["train"]) else 4])


def _problems(
    error: ErrorDetails, document: Document, where: str, origins: Mapping[str, str]
) -> Iterator[str]:
    """Put one pydantic error into our words: where, what was given, what is allowed."""
    path = _path(error["loc"])
    if error["type"].startswith("union_tag"):
        path = (*path, "type")
    key = ".".join(path)
    within = f"{key}." if key else ""
    touching = [override for k, override in origins.items() if k.startswith(within)]
    for reason in _reasons(error, path, document):
        if match := _OF_A_KEY.match(reason):  # a conflict is told where its key stands
            full, reason = (*path, *match[1].split(".")), reason[match.end() :]
        else:
            full = path
        place = _at(full, document, where)
        if key in origins:
            place = repr(origins[key])
        elif touching and error["type"] == "value_error":  # a conflict between several keys
            place = f"{where} with {' '.join(touching)}"
        elif touching and key not in document.lines:  # a section that only overrides have
            place = repr(touching[0])
        yield ": ".join(filter(None, (place, ".".join(full), reason)))


def _at(path: KeyPath, document: Document, where: str) -> str:
    """Return file and line of a key; where it is missing, those of the section around it."""
    for n in range(len(path), 0, -1):
        if line := document.lines.get(".".join(path[:n])):
            return f"{where}:{line}"
    return where


def _reasons(error: ErrorDetails, path: KeyPath, document: Document) -> Iterator[str]:
    given, context = error["input"], error.get("ctx", {})
    section, leaf = path[:-1], path[-1] if path else ""
    types = _SINGLE if section[:2] == _EXPERTS else _MODELS
    match error["type"]:
        case "extra_forbidden":
            yield f"unknown key{_suggest(section, leaf, document, given)}"
        case "missing" if path == _EXPERTS:
            yield f"missing; name at least one expert, such as {_AN_EXPERT}"
        case "missing":
            yield "missing; the least is 'model: {type: bigram}'"
        case "union_tag_not_found":
            yield f"missing; one of {', '.join(types)}"
        case "union_tag_invalid":
            near = difflib.get_close_matches(str(given["type"]), list(types), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            yield f"unknown type {shown(given['type'])}; one of {', '.join(types)}{hint}"
        case "value_error":
            yield from context["error"].args
        case "literal_error" | "bool_type" | "bool_parsing":
            allowed = context.get("expected", "true or false").replace("'", "")
            if leaf == "compile":
                allowed = "auto, true or false"
            yield f"{shown(given)} is not one of {allowed}"
        case "string_pattern_mismatch" if section == _EXPERTS:
            yield "not a name; use a letter, then up to 31 letters, digits, '_' and '-'"
        case "string_pattern_mismatch":
            yield f"unknown device {shown(given)}; use auto, cpu, mps, cuda or cuda:0"
        case "dict_type" if path == _EXPERTS:
            yield f"expected experts by name, such as {_AN_EXPERT}, got {shown(given)}"
        case "model_type" | "model_attributes_type" | "dict_type":
            yield f"expected a mapping of keys, got {shown(given)}"
        case _:
            yield f"must be {_allowed(section, leaf, document)}, got {shown(given)}"


def _allowed(section: KeyPath, leaf: str, document: Document) -> str:
    """Say the whole range of a number, and what it is."""
    facts = _keys(section, document)[leaf]
    facts = {**facts, **facts.get("anyOf", [{}])[0]}  # the first of `Size | None`
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    limits = [f"{word} {facts[name]}" for name, word in words.items() if name in facts]
    meaning = " ".join(facts["description"].partition(".")[0].split())  # it may go over two lines
    return f"{' and '.join(limits)} ({meaning[0].lower()}{meaning[1:]})"


def _suggest(section: KeyPath, leaf: str, document: Document, given: Any = None) -> str:
    """Return '; did you mean ...?' for an unknown key, or the names that are allowed."""
    own = section[:3] if section[:2] == _EXPERTS else ()
    if leaf in ALIASES:
        target = ALIASES[leaf]
        if target.startswith("no key"):
            return f"; {target}"
        of_expert = own and target.startswith(("model.", "train."))
        return f"; did you mean {'.'.join((*own, target)) if of_expert else target}?"
    if not section and leaf in _MODELS:  # `mixture: {...}`, as if each type were a section
        keys = given if isinstance(given, dict) else {}
        inner = [key for key in keys if key in _MODELS[leaf].model_fields]
        return f"; did you mean model.{inner[0] if inner else 'type'}?"
    places = {path: list(_keys(path, document)) for path in _places(own, document)}
    if not section and (own_keys := places.get((leaf,))):
        return f"; it is a section, set a key in it such as {leaf}.{own_keys[0]}"
    if homes := [".".join((*path, leaf)) for path, keys in places.items() if leaf in keys]:
        return f"; did you mean {homes[0]}?"
    if owners := [kind for kind, model in _MODELS.items() if leaf in model.model_fields]:
        return f"; only model type {' or '.join(owners)} has it"
    sections = list(Config.model_fields)
    if near := difflib.get_close_matches(leaf, places.get(section, sections), n=1):
        return f"; did you mean {near[0]!r}?"
    if section:
        return f"; {'.'.join(section)} has {', '.join(places[section])}"
    homes_of = {key: path for path, keys in reversed(places.items()) for key in keys}
    if near := difflib.get_close_matches(leaf, homes_of, n=1):
        return f"; did you mean {'.'.join((*homes_of[near[0]], near[0]))}?"
    return f"; sections: {', '.join(sections)}"


def _places(own: KeyPath, document: Document) -> list[KeyPath]:
    """List the sections in the order to search: those of the expert `own`, if any, come first."""
    experts = [own] if own else [(*_EXPERTS, name) for name in _experts(document.value)]
    nested = [(*expert, *inner) for expert in experts for inner in (("model",), ("train",), ())]
    outer: list[KeyPath] = [(name,) for name in Config.model_fields]
    return [*nested, *outer] if own else [*outer, *nested]


def _keys(section: KeyPath, document: Document) -> dict[str, dict[str, Any]]:
    """Return a section's keys with what the JSON schema says of each; of `model`, its type's."""
    of_expert = section[:2] == _EXPERTS
    sections: list[type[BaseModel]]
    if section[-1] == "model":
        types = _SINGLE if of_expert else _MODELS
        model = document.value
        for name in section:
            model = model.get(name) if isinstance(model, dict) else None
        kind = str(model.get("type")) if isinstance(model, dict) else ""
        sections = [types[kind]] if kind in types else list(types.values())
    elif of_expert:
        sections = [ExpertConfig if len(section) == 3 else TrainConfig]
    else:
        sections = [Config.model_fields[section[0]].annotation]  # type: ignore[list-item]
    return {key: facts for some in sections for key, facts in _properties(some).items()}


@functools.cache
def _properties(section: type[BaseModel]) -> dict[str, dict[str, Any]]:
    properties: dict[str, dict[str, Any]] = section.model_json_schema()["properties"]
    return properties
