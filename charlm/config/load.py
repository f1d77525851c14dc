"""From a preset's name or a file, and KEY=VALUE overrides, to a checked `Config`.

Every problem of a configuration is reported at once, each with its file, line and key, and an
unknown key is answered with the name that was probably meant.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from charlm.config.schema import Config, ModelConfig
from charlm.config.yaml_file import Document, plain_scalar, read_yaml
from charlm.errors import UsageError

# Names that readers of nanoGPT and its relatives will try, and where the same thing lives here.
ALIASES = {
    "backend": "no key: one process so far",
    "batch": "train.batch_size",
    "bias": "no key: neither style has biases",
    "block": "model.block_size",
    "context_length": "model.block_size",
    "dataset": "data.source",
    "decay_lr": "train.schedule (constant)",
    "epochs": "train.max_steps",
    "eval_interval": "train.eval_every",
    "eval_iters": "eval.max_chars",
    "gradient_accumulation_steps": "train.micro_batch_size",
    "input": "data.source",
    "learning_rate_decay": "train.schedule",
    "lr": "train.learning_rate",
    "lr_decay_iters": "train.max_steps (the schedule ends with it)",
    "max_iters": "train.max_steps",
    "max_new_tokens": "sample.max_new_chars",
    "num_samples": "the option -n of charlm sample",
    "out_dir": "run.out",
    "start": "sample.prompt",
    "steps": "train.max_steps",
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
    origins = _apply(document, overrides)
    # A section whose keys are all commented out reads as null and means its defaults.
    values = {
        key: {} if value is None and key in Config.model_fields else value
        for key, value in document.value.items()
    }
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        problems = [_problem(e, document, where, origins) for e in error.errors()]
        raise UsageError(*dict.fromkeys(problems)) from None


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
    if path.is_dir():
        raise UsageError(f"{name}: is a directory; name a YAML file or a preset")
    try:
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
        raise UsageError(f"{name}: cannot be read: {error.strerror}") from None


def _read_preset(name: str) -> bytes:
    if name not in preset_names():
        near = difflib.get_close_matches(name, preset_names(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"preset {name!r}: not one of {', '.join(preset_names())}{hint}")
    return (_preset_folder() / f"{name}.yaml").read_bytes()


def _apply(document: Document, overrides: Iterable[str]) -> dict[str, str]:
    """Set each KEY=VALUE in the document; return the overrides by key, for error messages."""
    origins: dict[str, str] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UsageError(f"{override!r}: expected KEY=VALUE, such as train.max_steps=500")
        *sections, leaf = key.split(".")
        if not sections:
            raise UsageError(f"{override!r}: unknown key {key!r}{_suggest('', leaf, document)}")
        target = document.value
        for section in sections:
            inner = target.setdefault(section, {}) if isinstance(target, dict) else None
            if inner is None and isinstance(target, dict):
                inner = target[section] = {}
            target = inner
        if not isinstance(target, dict):
            raise UsageError(f"{override!r}: {'.'.join(sections)} is not a section")
        target[leaf] = plain_scalar(text)
        origins[key] = override
    return origins


def _problem(
    error: ErrorDetails, document: Document, where: str, origins: Mapping[str, str]
) -> str:
    """Put one pydantic error into our words: where, what was given, what is allowed."""
    loc = [str(part) for part in error["loc"]]
    if loc[:1] == ["model"] and loc[1:2] and loc[1] in _MODELS:
        del loc[1]  # pydantic names the chosen member of the union; the file does not
    # A union such as `Size | None` appends the member's name; the key ends before it.
    while loc and ".".join(loc) not in document.lines and ".".join(loc) not in origins:
        if error["type"] in ("missing", "union_tag_not_found") or len(loc) <= 1:
            break
        loc.pop()
    key = ".".join(loc)
    if key in origins:
        place = repr(origins[key])
    elif key in document.lines:
        place = f"{where}:{document.lines[key]}"
    else:
        place = where
    subject = f"{place}: {key}: " if key else f"{place}: "
    section, _, leaf = key.rpartition(".")
    return subject + _reason(error, section, leaf or key, document)


def _reason(error: ErrorDetails, section: str, leaf: str, document: Document) -> str:
    given, context = error["input"], error.get("ctx", {})
    match error["type"]:
        case "extra_forbidden":
            return f"unknown key{_suggest(section, leaf, document)}"
        case "missing":
            return "missing; set it"
        case "union_tag_not_found":
            return f"type is missing; set model.type to one of {', '.join(_MODELS)}"
        case "union_tag_invalid":
            near = difflib.get_close_matches(str(context["tag"]), list(_MODELS), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            return f"unknown type {context['tag']!r}; one of {', '.join(_MODELS)}{hint}"
        case "value_error":
            return str(context["error"])
        case "literal_error" | "bool_type" | "bool_parsing":
            allowed = context.get("expected", "'auto', true or false").replace("'", "")
            if leaf == "compile":
                allowed = "auto, true or false"
            return f"{given!r} is not one of {allowed}"
        case "string_pattern_mismatch":
            return f"unknown device {given!r}; use auto, cpu, mps, cuda or cuda:0"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"expected a mapping of keys, got {'null' if given is None else repr(given)}"
        case _:
            message = error["msg"].replace("Input should be", "must be")
            return f"{message}, got {given!r}" if len(repr(given)) < 60 else message


def _suggest(section: str, leaf: str, document: Document) -> str:
    """Return '; did you mean ...?' for an unknown key, or the names that are allowed."""
    if leaf in ALIASES:
        target = ALIASES[leaf]
        return f"; did you mean {target}?" if "." in target else f"; {target}"
    places = _known_keys(document)
    if not section:
        if leaf in places:
            return ""
        homes = [f"{name}.{leaf}" for name, keys in places.items() if leaf in keys]
        if homes:
            return f"; did you mean {homes[0]}?"
        near = difflib.get_close_matches(
            leaf, [*places, *(k for ks in places.values() for k in ks)], n=1
        )
        if near:
            homes = [f"{name}.{near[0]}" for name, keys in places.items() if near[0] in keys]
            return f"; did you mean {homes[0] if homes else near[0]}?"
        return f"; sections: {', '.join(places)}"
    keys = places.get(section, [])
    near = difflib.get_close_matches(leaf, keys, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    homes = [f"{name}.{leaf}" for name, others in places.items() if leaf in others]
    if homes:
        return f"; did you mean {homes[0]}?"
    return f"; {section} has {', '.join(keys)}" if keys else ""


def _known_keys(document: Document) -> dict[str, list[str]]:
    places = {
        name: list(getattr(field.annotation, "model_fields", {}))
        for name, field in Config.model_fields.items()
    }
    model = document.value.get("model") if isinstance(document.value, dict) else None
    kind = model.get("type") if isinstance(model, dict) else None
    chosen = [_MODELS[kind]] if kind in _MODELS else list(_MODELS.values())
    places["model"] = list(dict.fromkeys(k for m in chosen for k in m.model_fields))
    return places
