"""Error messages for a configuration: the place, the given value, the allowed values.

pydantic reports the refused key and the reason. This file adds the file, line and key (or the
KEY=VALUE that set it), and suggests a name for an unknown key.
"""

import difflib
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from charlm.config.base import TYPES, types_of_models
from charlm.config.mixture import AN_EXPERT, ExpertConfig
from charlm.config.schema import Config
from charlm.config.sections import TrainConfig
from charlm.config.values import LARGEST, shown
from charlm.config.yaml_file import Document
from charlm.errors import Problem, Setting

# Names that users of nanoGPT and similar programs will try, and their names here.
ALIASES = {
    "always_save_checkpoint": "train.save_every",
    "batch": "train.batch_size",
    "block": "model.block_size",
    "context_length": "model.block_size",
    "d_model": "model.n_embd",
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
    "out_dir": "run.out",
    "start": "sample.prompt",
    "steps": "train.max_steps",
    "warmup_iters": "train.warmup_steps",
}
NO_KEYS = {
    "backend": "not needed: there is one process so far",
    "eval_only": "charlm eval scores a run",
    "log_interval": "metrics.jsonl has a record of every step",
    "num_samples": "charlm sample takes the number of samples",
    "wandb_log": "metrics.jsonl has a record of every step",
}

EXPERTS = ["model", "experts"]


def experts_of(document: Document) -> dict[str, Any]:
    """Return a mixture's experts as given, if they are a mapping."""
    experts = document.at(EXPERTS)
    return experts if isinstance(experts, dict) else {}


def depth(names: Sequence[str]) -> int:
    """Return how many names the key has that begins with these: only experts nest."""
    if list(names[:2]) != EXPERTS:
        return 2
    return 5 if names[3:4] in (["model"], ["train"]) else 4


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return `did you mean ...?` with the most similar name; empty if none is similar."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def problems_of(error: ErrorDetails, document: Document) -> Iterator[Problem]:
    """Yield the problems that pydantic found, in charlm's words."""
    path = [str(part) for part in error["loc"]]
    if path[:2] == EXPERTS and path[3:4] == ["[key]"]:  # pydantic adds it to an expert's name
        del path[3]
    path = path[: depth(path)]  # the rest names the union member that pydantic was trying
    if error["type"].startswith("union_tag"):
        path.append("type")
    key = ".".join(path)
    touching = [o for k, o in document.overrides.items() if not key or k.startswith(f"{key}.")]
    conflict = error["type"] == "value_error"
    found = error["ctx"]["error"].args if conflict else ()
    if not any(
        isinstance(one, Problem) for one in found
    ):  # the words of pydantic, or of a new kind
        found = (Problem("", *_reason(error, path, document)),)
    for problem in found:  # whose `where` is empty, or a key within the section at `path`
        full = [*path, *str(problem.where).split(".")] if problem.where else path
        place = document.line_of(full)
        if key in document.overrides and not problem.where:
            value = document.overrides[key].partition("=")[2]
            yield replace(problem, where=Setting(key, value))
            continue
        if touching and conflict:  # between several keys
            place = f"{document.where} with {' '.join(touching)}"
        elif touching and key not in document.lines:  # the overrides made this section
            place = touching[0]
        yield replace(problem, where=": ".join(filter(None, (place, ".".join(full)))))


def _reason(error: ErrorDetails, path: list[str], document: Document) -> tuple[str, ...]:
    """Return the mistake in the value at `path` and, if it is not obvious, how to correct it."""
    value, section, leaf = error["input"], path[:-1], path[-1] if path else ""
    match error["type"]:
        case "extra_forbidden":
            return "unknown key", suggestion(section, leaf, document, value)
        case "missing" if path == EXPERTS:
            return "missing", f"name at least one expert, such as {AN_EXPERT}"
        case "missing":
            return "missing", "write at least 'model: {type: bigram}'"
        case "union_tag_not_found":
            return "missing", f"one of {', '.join(_types(section))}"
        case "union_tag_invalid":
            allowed = f"one of {', '.join(_types(section))}"
            hint = did_you_mean(str(value["type"]), _types(section))
            return f"unknown type {shown(value['type'])}", "; ".join(filter(None, (allowed, hint)))
        case "literal_error" | "bool_type" | "bool_parsing":
            allowed = error.get("ctx", {}).get("expected", "true or false").replace("'", "")
            allowed = "auto, true or false" if leaf == "compile" else allowed
            return (f"{shown(value)} is not one of {allowed}",)
        case "string_pattern_mismatch" if section == EXPERTS:
            return "not a name", "use a letter, then up to 31 letters, digits, '_' and '-'"
        case "string_pattern_mismatch":
            return f"unknown device {shown(value)}", "use auto, cpu, mps, cuda or cuda:0"
        case "dict_type" if path == EXPERTS:
            return (f"expected experts by name, such as {AN_EXPERT}, got {shown(value)}",)
        case "model_type" | "model_attributes_type" | "dict_type":
            return (f"expected a mapping of keys, got {shown(value)}",)
        case "greater_than" | "greater_than_equal" | "less_than" | "less_than_equal":
            facts = _keys(section, document)[leaf]
            allowed = _allowed(facts, too_large=error["type"].startswith("less"))
            return (f"must be {allowed}, got {shown(value)}",)
    return (f"{error.get('ctx', {}).get('error', error['msg'])}, got {shown(value)}",)


def _types(section: list[str]) -> dict[str, Any]:
    """Return the types that a section `model` may have."""
    return types_of_models(expert=section[:2] == EXPERTS)


def _allowed(facts: dict[str, Any], too_large: bool) -> str:
    """Return the allowed range of a number and its meaning."""
    for union in ("anyOf", "oneOf"):
        facts = facts | facts.get(union, [{}])[0]  # the first of `Size | None`
    if facts.get("maximum") == LARGEST and not too_large:
        del facts["maximum"]  # far from what anybody means
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    limits = [f"{word} {facts[name]}" for name, word in words.items() if name in facts]
    meaning = " ".join(facts.get("description", "").partition(".")[0].split())  # may have two lines
    explained = f" ({meaning[0].lower()}{meaning[1:]})" if meaning else ""
    return " and ".join(limits) + explained


def suggestion(section: list[str], leaf: str, document: Document, value: Any = None) -> str:
    """Return `did you mean ...?` for an unknown key of a section, or a list of its keys."""
    own = section[:3] if section[:2] == EXPERTS else []
    if leaf in NO_KEYS:
        return NO_KEYS[leaf]
    if leaf in ALIASES:
        target = ALIASES[leaf]
        of_expert = own and target.startswith(("model.", "train."))
        return f"did you mean {'.'.join((*own, target)) if of_expert else target}?"
    if not section and leaf in TYPES:  # `mixture: {...}`, with a type in place of a section
        keys = value if isinstance(value, dict) else {}
        inner = [key for key in keys if key in TYPES[leaf].model_fields]
        return f"did you mean model.{inner[0] if inner else 'type'}?"
    places = {".".join(path): list(_keys(path, document)) for path in _places(own, document)}
    if not section and leaf in places:
        return f"it is a section, set a key in it such as {leaf}.{places[leaf][0]}"
    if homes := [path for path, keys in places.items() if leaf in keys]:
        return f"did you mean {homes[0]}.{leaf}?"
    if owners := [name for name, model in TYPES.items() if leaf in model.model_fields]:
        return f"only model type {' or '.join(owners)} has it"
    sections = list(Config.model_fields)
    name = ".".join(section)
    if hint := did_you_mean(leaf, places.get(name, sections)):
        return hint
    if section:
        return f"{name} has {', '.join(places[name])}"
    homes_of = {key: path for path, keys in reversed(places.items()) for key in keys}
    if near := difflib.get_close_matches(leaf, homes_of, n=1):
        return f"did you mean {homes_of[near[0]]}.{near[0]}?"
    return f"sections: {', '.join(sections)}"


def key_called(name: str) -> str:
    """Return the first key with this last part, or that a name of other programs stands for."""
    if name in ALIASES:
        return ALIASES[name].partition(" ")[0]
    return next((key for key in all_keys() if key.partition(".")[2] == name), "")


def all_keys() -> dict[str, list[str]]:
    """Return every key of a section, and the values that it may have if they are few."""
    nothing, found = Document("", {}), {}
    for section in _places([], nothing):
        for key, facts in _keys(section, nothing).items():
            values = facts.get("enum", ["true", "false"] if facts.get("type") == "boolean" else [])
            found[".".join([*section, key])] = list(map(str, values))
    return found | {"model.type": list(types_of_models(expert=False))}


def _places(own: list[str], document: Document) -> list[list[str]]:
    """List the sections in the order to search: those of the expert `own`, if any, come first."""
    experts = [own] if own else [[*EXPERTS, name] for name in experts_of(document)]
    nested = [[*expert, *inner] for expert in experts for inner in (["model"], ["train"], [])]
    outer = [[name] for name in Config.model_fields]
    return nested + outer if own else outer + nested


def _keys(section: list[str], document: Document) -> dict[str, dict[str, Any]]:
    """Return a section's keys with their JSON schemas; for `model`, those of its type."""
    sections: list[type[BaseModel]]
    if section[-1] == "model":
        types, name = _types(section), str(document.at([*section, "type"]))
        sections = [types[name]] if name in types else list(types.values())
    elif section[:2] == EXPERTS:
        sections = [ExpertConfig if len(section) == 3 else TrainConfig]
    else:
        sections = [Config.model_fields[section[0]].annotation]  # type: ignore[list-item]
    return {key: facts for some in sections for key, facts in _properties(some).items()}


@functools.cache
def _properties(section: type[BaseModel]) -> dict[str, dict[str, Any]]:
    properties: dict[str, dict[str, Any]] = section.model_json_schema()["properties"]
    return properties
