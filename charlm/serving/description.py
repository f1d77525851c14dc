"""The OpenAPI description of the server, made from the classes of its requests."""

from typing import Any

from charlm.serving.requests import CompletionRequest, NextRequest, ScoreRequest

_ERROR = {
    "description": "What is wrong, in one sentence",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["error"],
                "properties": {
                    "error": {
                        "type": "object",
                        "required": ["message", "type"],
                        "properties": {
                            "message": {"type": "string"},
                            "type": {"type": "string"},
                            "param": {"type": ["string", "null"]},
                            "code": {"type": ["string", "null"]},
                        },
                    }
                },
            }
        }
    },
}


def describe() -> dict[str, Any]:
    """Return the description."""
    schemas: dict[str, Any] = {}
    paths = {
        "/v1/models": _get("The models"),
        "/v1/completions": _post("Texts that continue prompts", CompletionRequest, schemas),
        "/v1/score": _post("How likely texts are", ScoreRequest, schemas),
        "/v1/next": _post("What may come next", NextRequest, schemas),
        "/health": _get("Whether the server works"),
        "/metrics": _get("Numbers for Prometheus", "text/plain"),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "charlm", "version": "1"},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _get(summary: str, kind: str = "application/json") -> dict[str, Any]:
    return {"get": {"summary": summary, "responses": {"200": _ok(kind), "4XX": _ERROR}}}


def _post(summary: str, request: type[Any], schemas: dict[str, Any]) -> dict[str, Any]:
    schema = request.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= schema.pop("$defs", {})
    schemas[request.__name__] = schema
    body = {"$ref": f"#/components/schemas/{request.__name__}"}
    return {
        "post": {
            "summary": summary,
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": body}},
            },
            "responses": {"200": _ok("application/json"), "4XX": _ERROR},
        }
    }


def _ok(kind: str) -> dict[str, Any]:
    return {"description": "Done", "content": {kind: {}}}
