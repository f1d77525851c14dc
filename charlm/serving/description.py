"""The OpenAPI description of the server, made from the classes of its requests."""

from collections.abc import Mapping
from typing import Any

from charlm.serving.requests import CompletionRequest, NextRequest, ScoreRequest

Schema = dict[str, Any]


def _object(**properties: Any) -> Schema:
    """Return the schema of an object that has these properties and no others; a value may be a type's name."""
    described = {
        name: {"type": value} if isinstance(value, str | list) else value
        for name, value in properties.items()
    }
    return {
        "type": "object",
        "required": [*described],
        "properties": described,
        "additionalProperties": False,
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


_OR_NULL = ["string", "null"]
_ERROR = {
    "description": "What is wrong, in one sentence",
    "content": {
        "application/json": {
            "schema": _object(
                error=_object(message="string", type="string", param=_OR_NULL, code=_OR_NULL)
            )
        }
    },
}
_CARD = _object(id="string", object="string", created="integer", owned_by="string")
_LOGPROBS = _object(
    tokens=_list({"type": "string"}),
    token_logprobs=_list({"type": ["number", "null"]}),
    top_logprobs={"type": ["array", "null"], "items": {"type": ["object", "null"]}},
    text_offset=_list({"type": "integer"}),
)
_CHOICE = _object(
    index="integer",
    text="string",
    logprobs={"anyOf": [_LOGPROBS, {"type": "null"}]},
    finish_reason=_OR_NULL,
)
_USAGE = _object(prompt_tokens="integer", completion_tokens="integer", total_tokens="integer")
_COMPLETION = _object(
    id="string",
    object="string",
    created="integer",
    model="string",
    choices=_list(_CHOICE),
    usage=_USAGE,
)
_SCORE = _object(
    index="integer",
    nats="number",
    bits_per_char="number",
    chars="integer",
    unknown="integer",
    bits=_list({"type": "number"}),
)
_SCORES = _object(object="string", model="string", data=_list(_SCORE))
_NEXT = _object(model="string", next=_list(_object(text="string", p="number")))


def describe(models: Mapping[str, int], token: bool = False) -> Schema:
    """Return the description.

    Args:
        models: The names of the models, and the longest text that each draws.
        token: Whether clients need a token.
    """
    schemas: Schema = {}
    names = [*models]

    def post(summary: str, request: type[Any], answer: Schema, *others: str) -> Schema:
        schema = request.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schema["properties"]["model"] |= {"enum": names}
        schemas[request.__name__] = schema
        body = {"$ref": f"#/components/schemas/{request.__name__}"}
        content = {"required": True, "content": {"application/json": {"schema": body}}}
        return {"post": _operation(summary, answer, *others) | {"requestBody": content}}

    completions = post(
        "Texts that continue prompts", CompletionRequest, _COMPLETION, "text/event-stream"
    )
    longest = schemas["CompletionRequest"]["properties"]["max_tokens"]["anyOf"][0]
    longest["maximum"] = min(models.values(), default=longest["maximum"])
    name = {"name": "name", "in": "path", "required": True, "schema": {"enum": names}}
    card = _operation("One model", _CARD) | {"parameters": [name]}
    paths = {
        "/v1/models": _get("The models", _object(object="string", data=_list(_CARD))),
        "/v1/models/{name}": {"get": card},
        "/v1/completions": completions,
        "/v1/score": post("How likely texts are", ScoreRequest, _SCORES),
        "/v1/next": post("What may come next", NextRequest, _NEXT),
        "/health": _open(_get("Whether the server works", _object(status="string"))),
        "/metrics": _get("Numbers for Prometheus", None, "text/plain"),
        "/": _open(_get("The page", None, "text/html")),
    }
    described: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "charlm", "version": "1"},
        "paths": paths,
        "components": {"schemas": schemas},
    }
    if token:
        bearer = {"type": "http", "scheme": "bearer"}
        described["components"]["securitySchemes"] = {"token": bearer}
        described["security"] = [{"token": []}]
    return described


def _open(operations: Schema) -> Schema:
    """Say that operations need no token."""
    return {method: one | {"security": []} for method, one in operations.items()}


def _get(summary: str, answer: Schema | None, *others: str) -> Schema:
    return {"get": _operation(summary, answer, *others)}


def _operation(summary: str, answer: Schema | None, *others: str) -> Schema:
    """Describe an operation that answers in JSON, by the schema `answer`, or in `others`."""
    content: Schema = {kind: {} for kind in others}
    if answer:
        content = {"application/json": {"schema": answer}} | content
    done = {"description": "Done", "content": content}
    return {"summary": summary, "responses": {"200": done, "4XX": _ERROR}}
