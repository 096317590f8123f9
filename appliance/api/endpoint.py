"""An endpoint as a value: path, role, bodies, handler. Routes and OpenAPI come from one list."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict

from appliance import __version__
from appliance.api.peer import Peer, Role


class ApiModel(BaseModel):
    """Base of request and response bodies: unknown keys are refused, values are frozen. Each is
    built when it is first used, not when the daemon starts."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Call:
    """One request, authenticated, bounded and parsed."""

    request: web.BaseRequest
    peer: Peer
    path: Mapping[str, str]
    parsed_body: BaseModel | None
    parsed_query: BaseModel | None

    def body(self, kind: type[ModelT]) -> ModelT:
        assert isinstance(self.parsed_body, kind)
        return self.parsed_body

    def query(self, kind: type[ModelT]) -> ModelT:
        assert isinstance(self.parsed_query, kind)
        return self.parsed_query


Handler = Callable[[Call], Awaitable[BaseModel | web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`role` is the least that may call it. `streams` marks server-sent events."""

    method: str
    path: str
    summary: str
    role: Role
    handler: Handler
    reply: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    status: int = 200
    streams: bool = False
    tags: tuple[str, ...] = field(default=())


class Problem(ApiModel):
    """An error, as problem+json (RFC 9457) with our stable code and a hint."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    hint: str = ""
    retryable: bool = False
    retry_after_s: float | None = None
    details: dict[str, Any] = {}


def openapi(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of these endpoints, generated from their pydantic models."""
    schemas: dict[str, Any] = {}
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "appliance", "version": __version__},
        "paths": paths,
        "components": {"schemas": dict(sorted(schemas.items()))},
    }


def _operation(endpoint: Endpoint, schemas: dict[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "description": f"Least role: {endpoint.role.word}.",
        "operationId": endpoint.handler.__name__,
        "parameters": [*_path_parameters(endpoint.path), *_query_parameters(endpoint, schemas)],
        "responses": {
            str(endpoint.status): _reply(endpoint, schemas),
            "4XX": _json("the request cannot be carried out", Problem, schemas, problem=True),
            "5XX": _json("the daemon or a model failed", Problem, schemas, problem=True),
        },
    }
    if endpoint.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _schema(endpoint.body, schemas)}},
        }
    return operation


def _path_parameters(path: str) -> list[dict[str, Any]]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in names
    ]


def _query_parameters(endpoint: Endpoint, schemas: dict[str, Any]) -> list[dict[str, Any]]:
    if endpoint.query is None:
        return []
    schema = endpoint.query.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(schema.pop("$defs", {}))
    return [
        {"name": name, "in": "query", "required": False, "schema": field_schema}
        for name, field_schema in schema["properties"].items()
    ]


def _reply(endpoint: Endpoint, schemas: dict[str, Any]) -> dict[str, Any]:
    if endpoint.streams:
        stream = {"text/event-stream": {"schema": {"type": "string"}}}
        return {"description": endpoint.summary, "content": stream}
    if endpoint.reply is None:
        return {"description": endpoint.summary, "content": {"application/json": {"schema": {}}}}
    return _json(endpoint.summary, endpoint.reply, schemas)


def _json(
    description: str, model: type[BaseModel], schemas: dict[str, Any], *, problem: bool = False
) -> dict[str, Any]:
    media = "application/problem+json" if problem else "application/json"
    return {"description": description, "content": {media: {"schema": _schema(model, schemas)}}}


def _schema(model: type[BaseModel], schemas: dict[str, Any]) -> dict[str, Any]:
    schema = model.model_json_schema(
        ref_template="#/components/schemas/{model}", mode="serialization"
    )
    schemas.update(schema.pop("$defs", {}))
    schemas[model.__name__] = schema
    return {"$ref": f"#/components/schemas/{model.__name__}"}
