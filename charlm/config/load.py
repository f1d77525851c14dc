"""From a preset's name or a file, and KEY=VALUE overrides, to a checked `Config`.

Every problem of a configuration is reported at once, each with its file, line and key, and an
unknown key is answered with the name that was probably meant.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from charlm.config.schema import Config, ModelConfig, shown
from charlm.config.yaml_file import Document, plain_scalar, read_yaml
from charlm.errors import UsageError

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
    "init_from": "no key: --resume goes on with a run",
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
        UsageError: Any key or value is wrong; all problems at once.
    """
    document = read_yaml(data, where)
    if document.value is None:
        raise UsageError(
            f"{where}: empty; the least is 'model: {{type: bigram}}', or start from a preset: "
            f"{', '.join(preset_names())}"
        )
    if not isinstance(document.value, dict):
        kind = "list" if isinstance(document.value, list) else "single value"
        raise UsageError(f"{where}: expected a mapping such as 'model: ...', got a {kind}")
    origins, problems = _apply(document, overrides)
    # A section whose keys are all commented out reads as null and means its defaults.
    values = {
        key: {} if value is None and key in Config.model_fields else value
        for key, value in document.value.items()
    }
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        for found in error.errors():
            problems += _problems(found, document, where, origins)
    if problems:
        raise UsageError(*dict.fromkeys(problems))
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
        nearby = sorted(str(p) for p in folder.glob("*.y*ml"))[:5]
        choices = [*nearby, *preset_names()] if looks_like_path else preset_names()
        near = difflib.get_close_matches(name, choices, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        files = f"; YAML files there: {', '.join(nearby)}" if nearby else ""
        raise UsageError(
            f"{name}: not found; {hint}presets: {', '.join(preset_names())}{files}"
        ) from None
    except OSError as error:
        reason = f"cannot be read: {error.strerror}; name a YAML file or a preset"
        raise UsageError(f"{name}: {reason}") from None


def _read_preset(name: str) -> bytes:
    if name not in preset_names():
        near = difflib.get_close_matches(name, preset_names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"preset {name!r}: not one of {', '.join(preset_names())}{hint}")
    return (_preset_folder() / f"{name}.yaml").read_bytes()


def _apply(document: Document, overrides: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Set each KEY=VALUE in the document; return the overrides by key, and what is wrong."""
    origins: dict[str, str] = {}
    problems: list[str] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        section, _, leaf = key.partition(".")
        if not equals or not key:
            problems.append(f"{override!r}: expected KEY=VALUE, such as train.max_steps=500")
        elif section not in Config.model_fields or not leaf:
            hint = _suggest("", key.rpartition(".")[2], document)
            problems.append(f"{override!r}: unknown key {key!r}{hint}")
        else:
            keys = document.value.get(section)
            if keys is None:
                keys = document.value[section] = {}
            if isinstance(keys, dict):  # a file that says `train: 3` is refused for that
                keys[leaf] = plain_scalar(text)
                origins[key] = override
    return origins, problems


def _problems(
    error: ErrorDetails, document: Document, where: str, origins: Mapping[str, str]
) -> Iterator[str]:
    """Put one pydantic error into our words: where, what was given, what is allowed."""
    loc = [str(part) for part in error["loc"]]
    if loc[:1] == ["model"] and loc[1:2] and loc[1] in _MODELS:
        del loc[1]  # pydantic names the chosen member of the union; the file does not
    if error["type"].startswith("union_tag"):
        loc.append("type")
    loc = loc[:2]  # a union such as `Size | None` appends the member's name
    key = ".".join(loc)
    place = f"{where}:{document.lines[key]}" if key in document.lines else where
    within = f"{key}." if key else ""
    touching = [override for k, override in origins.items() if k.startswith(within)]
    if key in origins:
        place = repr(origins[key])
    elif error["type"] == "value_error" and touching:  # a conflict between several keys
        place = f"{where} with {' '.join(touching)}"
    subject = f"{place}: {key}: " if key else f"{place}: "
    for reason in _reasons(error, loc, document):
        yield subject + reason


def _reasons(error: ErrorDetails, loc: Sequence[str], document: Document) -> Iterator[str]:
    given, context = error["input"], error.get("ctx", {})
    section, leaf = loc if len(loc) == 2 else ("", loc[0] if loc else "")
    match error["type"]:
        case "extra_forbidden":
            yield f"unknown key{_suggest(section, leaf, document)}"
        case "missing":
            yield "missing; the least is 'model: {type: bigram}'"
        case "union_tag_not_found":
            yield f"missing; one of {', '.join(_MODELS)}"
        case "union_tag_invalid":
            near = difflib.get_close_matches(str(given["type"]), list(_MODELS), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            yield f"unknown type {shown(given['type'])}; one of {', '.join(_MODELS)}{hint}"
        case "value_error":
            yield from context["error"].args
        case "literal_error" | "bool_type" | "bool_parsing":
            allowed = context.get("expected", "").replace("'", "")
            if leaf == "compile":
                allowed = "auto, true or false"
            yield f"{shown(given)} is not one of {allowed}"
        case "string_pattern_mismatch":
            yield f"unknown device {shown(given)}; use auto, cpu, mps, cuda or cuda:0"
        case "model_type" | "model_attributes_type" | "dict_type":
            yield f"expected a mapping of keys, got {shown(given)}"
        case _:
            yield f"must be {_allowed(section, leaf, document)}, got {shown(given)}"


def _allowed(section: str, leaf: str, document: Document) -> str:
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
    meaning = facts["description"].partition(".")[0]
    return f"{' and '.join(limits)} ({meaning[0].lower()}{meaning[1:]})"


def _suggest(section: str, leaf: str, document: Document) -> str:
    """Return '; did you mean ...?' for an unknown key, or the names that are allowed."""
    if leaf in ALIASES:
        target = ALIASES[leaf]
        return f"; {target}" if target.startswith("no key") else f"; did you mean {target}?"
    places = {name: list(_keys(name, document)) for name in Config.model_fields}
    if not section and leaf in places:
        return f"; it is a section, set a key in it such as {leaf}.{places[leaf][0]}"
    if homes := [f"{name}.{leaf}" for name, keys in places.items() if leaf in keys]:
        return f"; did you mean {homes[0]}?"
    if owners := [kind for kind, model in _MODELS.items() if leaf in model.model_fields]:
        return f"; only model type {' or '.join(owners)} has it"
    if near := difflib.get_close_matches(leaf, places.get(section, places), n=1):
        return f"; did you mean {near[0]!r}?"
    if section:
        return f"; {section} has {', '.join(places[section])}"
    keys = {key: name for name, keys in places.items() for key in keys}
    if near := difflib.get_close_matches(leaf, keys, n=1):
        return f"; did you mean {keys[near[0]]}.{near[0]}?"
    return f"; sections: {', '.join(places)}"


def _keys(section: str, document: Document) -> dict[str, dict[str, Any]]:
    """Return a section's keys with what the JSON schema says of each; of `model`, its type's."""
    sections = [Config.model_fields[section].annotation]
    if section == "model":
        model = document.value.get("model")
        kind = str(model.get("type")) if isinstance(model, dict) else ""
        sections = [_MODELS[kind]] if kind in _MODELS else list(_MODELS.values())
    properties = [s.model_json_schema()["properties"] for s in sections if s]
    return {key: facts for some in properties for key, facts in some.items()}
