"""What is wrong with a configuration, in words: where, what was given, what is allowed.

pydantic says which key it refused and why. Here that becomes a file, a line and a key (or the
KEY=VALUE that set it), and an unknown key is answered with the name that was probably meant.
"""

import difflib
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from charlm.config.base import TYPES, types_of_models
from charlm.config.mixture import AN_EXPERT, ExpertConfig
from charlm.config.schema import Config
from charlm.config.sections import TrainConfig
from charlm.config.values import shown
from charlm.config.yaml_file import Document
from charlm.errors import Problem, Setting

# Names that readers of nanoGPT and its relatives will try, and what they are called here.
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
    "bias": "neither style of gpt has biases",
    "eval_only": "charlm eval scores a run",
    "log_interval": "metrics.jsonl has a record of every step",
    "num_samples": "charlm sample takes the number of samples",
    "wandb_log": "metrics.jsonl has a record of every step",
}

EXPERTS = ("model", "experts")
KeyPath = tuple[str, ...]  # from the outermost section inwards; dotted, it is a key


def experts_of(document: Document) -> dict[str, Any]:
    """Return what a mixture's experts are given as, if that is a mapping."""
    model = document.value.get("model")
    experts = model.get("experts") if isinstance(model, dict) else None
    return experts if isinstance(experts, dict) else {}


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a question that names the most similar of some names; empty if none is similar."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def problems_of(error: ErrorDetails, document: Document) -> Iterator[Problem]:
    """Say in our words what pydantic found."""
    path = _path(error["loc"])
    if error["type"].startswith("union_tag"):
        path = (*path, "type")
    key = ".".join(path)
    within = f"{key}." if key else ""
    touching = [override for k, override in document.overrides.items() if k.startswith(within)]
    for problem in _reasons(error, path, document):
        full = (*path, *str(problem.where).split(".")) if problem.where else path
        place = document.line_of(full)
        if key in document.overrides and full == path:
            value = document.overrides[key].partition("=")[2]
            yield replace(problem, where=Setting(key, value))
            continue
        if touching and error["type"] == "value_error":  # a conflict between several keys
            place = f"{document.where} with {' '.join(touching)}"
        elif touching and key not in document.lines:  # the overrides made this section
            place = touching[0]
        yield replace(problem, where=": ".join(filter(None, (place, ".".join(full)))))


def _path(location: Sequence[int | str]) -> KeyPath:
    """Return the key that pydantic's location means.

    pydantic adds what it was trying: the member of a union, or `[key]` for the name of an expert.
    """
    path = [str(part) for part in location]
    if tuple(path[:2]) != EXPERTS:
        return tuple(path[:2])
    if path[3:4] == ["[key]"]:
        del path[3]
    return tuple(path[: 5 if path[3:4] in (["model"], ["train"]) else 4])


def _reasons(error: ErrorDetails, path: KeyPath, document: Document) -> Iterator[Problem]:
    """Yield what is wrong; `where` is empty, or a key within the section at `path`."""
    value, context = error["input"], error.get("ctx", {})
    section, leaf = path[:-1], path[-1] if path else ""
    match error["type"]:
        case "value_error":
            yield from context["error"].args
        case "extra_forbidden":
            yield Problem("", "unknown key", suggestion(section, leaf, document, value))
        case "missing" if path == EXPERTS:
            yield Problem("", "missing", f"name at least one expert, such as {AN_EXPERT}")
        case "missing":
            yield Problem("", "missing", "the least is 'model: {type: bigram}'")
        case "union_tag_not_found":
            yield Problem("", "missing", f"one of {', '.join(_types(section))}")
        case "union_tag_invalid":
            hint = did_you_mean(str(value["type"]), _types(section))
            allowed = f"one of {', '.join(_types(section))}{'; ' * bool(hint)}{hint}"
            yield Problem("", f"unknown type {shown(value['type'])}", allowed)
        case "literal_error" | "bool_type" | "bool_parsing":
            allowed = context.get("expected", "true or false").replace("'", "")
            if leaf == "compile":
                allowed = "auto, true or false"
            yield Problem("", f"{shown(value)} is not one of {allowed}")
        case "string_pattern_mismatch" if section == EXPERTS:
            allowed = "use a letter, then up to 31 letters, digits, '_' and '-'"
            yield Problem("", "not a name", allowed)
        case "string_pattern_mismatch":
            allowed = "use auto, cpu, mps, cuda or cuda:0"
            yield Problem("", f"unknown device {shown(value)}", allowed)
        case "dict_type" if path == EXPERTS:
            yield Problem("", f"expected experts by name, such as {AN_EXPERT}, got {shown(value)}")
        case "model_type" | "model_attributes_type" | "dict_type":
            yield Problem("", f"expected a mapping of keys, got {shown(value)}")
        case _:
            yield Problem("", f"must be {_allowed(section, leaf, document)}, got {shown(value)}")


def _types(section: KeyPath) -> dict[str, Any]:
    """Return the types that a section `model` may have."""
    return types_of_models(expert=section[:2] == EXPERTS)


def _allowed(section: KeyPath, leaf: str, document: Document) -> str:
    """Return the whole range of a number, and what the number is."""
    facts = _keys(section, document)[leaf]
    facts = {**facts, **facts.get("anyOf", [{}])[0]}  # the first of `Size | None`
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    limits = [f"{word} {facts[name]}" for name, word in words.items() if name in facts]
    meaning = " ".join(facts["description"].partition(".")[0].split())  # it may take two lines
    return f"{' and '.join(limits)} ({meaning[0].lower()}{meaning[1:]})"


def suggestion(section: KeyPath, leaf: str, document: Document, value: Any = None) -> str:
    """Return `did you mean ...?` for an unknown key, or which names there are.

    Args:
        section: Where it stands.
        leaf: Its own name.
        document: The configuration.
        value: What it was set to.
    """
    own = section[:3] if section[:2] == EXPERTS else ()
    if leaf in NO_KEYS:
        return NO_KEYS[leaf]
    if leaf in ALIASES:
        target = ALIASES[leaf]
        of_expert = own and target.startswith(("model.", "train."))
        return f"did you mean {'.'.join((*own, target)) if of_expert else target}?"
    if not section and leaf in TYPES:  # `mixture: {...}`, as if each type were a section
        keys = value if isinstance(value, dict) else {}
        inner = [key for key in keys if key in TYPES[leaf].model_fields]
        return f"did you mean model.{inner[0] if inner else 'type'}?"
    places = {path: list(_keys(path, document)) for path in _places(own, document)}
    if not section and (own_keys := places.get((leaf,))):
        return f"it is a section, set a key in it such as {leaf}.{own_keys[0]}"
    if homes := [".".join((*path, leaf)) for path, keys in places.items() if leaf in keys]:
        return f"did you mean {homes[0]}?"
    if owners := [name for name, model in TYPES.items() if leaf in model.model_fields]:
        return f"only model type {' or '.join(owners)} has it"
    sections = list(Config.model_fields)
    if hint := did_you_mean(leaf, places.get(section, sections)):
        return hint
    if section:
        return f"{'.'.join(section)} has {', '.join(places[section])}"
    homes_of = {key: path for path, keys in reversed(places.items()) for key in keys}
    if near := difflib.get_close_matches(leaf, homes_of, n=1):
        return f"did you mean {'.'.join((*homes_of[near[0]], near[0]))}?"
    return f"sections: {', '.join(sections)}"


def _places(own: KeyPath, document: Document) -> list[KeyPath]:
    """List the sections in the order to search: those of the expert `own`, if any, come first."""
    experts = [own] if own else [(*EXPERTS, name) for name in experts_of(document)]
    nested = [(*expert, *inner) for expert in experts for inner in (("model",), ("train",), ())]
    outer: list[KeyPath] = [(name,) for name in Config.model_fields]
    return [*nested, *outer] if own else [*outer, *nested]


def _keys(section: KeyPath, document: Document) -> Mapping[str, dict[str, Any]]:
    """Return a section's keys with what the JSON schema says of each; of `model`, its type's."""
    sections: list[type[BaseModel]]
    if section[-1] == "model":
        types = _types(section)
        model = document.value
        for name in section:
            model = model.get(name) if isinstance(model, dict) else None
        name = str(model.get("type")) if isinstance(model, dict) else ""
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
