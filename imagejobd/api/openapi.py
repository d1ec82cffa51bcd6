"""The native API described for programs: OpenAPI 3.1, made of `operations.py` and of the types in `schemas.py`."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web

from imagejobd import __version__
from imagejobd.api.operations import (
    COMMON_ERRORS,
    JSON,
    MULTIPART,
    OPERATIONS,
    Answer,
    Operation,
    Parameter,
)
from imagejobd.api.schemas import Problem, Submission
from imagejobd.api.wire import json_response, parameters, status_of
from imagejobd.model.errors import ErrorCode, Permanent, StoreFailed
from imagejobd.model.job import Json

PATH = "/api/v2/openapi.json"
PROBLEM = "application/problem+json"
REF = "#/components/schemas/{name}"
SUBMISSION = "Submission"


def routes() -> list[web.RouteDef]:
    return [web.get(PATH, show)]


async def show(request: web.Request) -> web.Response:
    """The document, the same for every caller."""
    parameters(request)
    return json_response(document())


@cache
def document() -> Json:
    """The document of all operations."""
    schemas = _Schemas()
    paths: dict[str, Json] = defaultdict(dict)
    for one in OPERATIONS:
        paths[one.path][one.method] = _operation(one, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "imagejobd",
            "version": __version__,
            "description": "Image jobs on a build host: builds, sandboxed runs, and copies between registries.",
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"token": []}],
        "paths": dict(paths),
        "components": {
            "schemas": schemas.components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def error_statuses(errors: Iterable[ErrorCode]) -> dict[HTTPStatus, list[ErrorCode]]:
    """The codes by the status that each is answered with."""
    statuses: dict[HTTPStatus, list[ErrorCode]] = defaultdict(list)
    for code in errors:
        for status in _statuses(code):
            statuses[status].append(code)
    return dict(sorted(statuses.items()))


def _statuses(code: ErrorCode) -> Iterator[HTTPStatus]:
    yield status_of(Permanent(code, ""))
    if code is ErrorCode.INTERNAL:
        yield status_of(StoreFailed(""))


class _Schemas:
    """The types of the document: each is described once, and referred to."""

    def __init__(self) -> None:
        types = {id(kind): kind for kind in _types()}
        described, components = msgspec.json.schema_components(types.values(), ref_template=REF)
        self._by_type = dict(zip(types, described, strict=True))
        self.components: Json = {name: _pruned(schema) for name, schema in components.items()}
        submission = self._by_type[id(Submission)]
        # Of a discriminated union exactly one fits.
        self.components[SUBMISSION] = {"oneOf": submission["anyOf"], "discriminator": submission["discriminator"]}
        self._by_type[id(Submission)] = {"$ref": REF.format(name=SUBMISSION)}

    def of(self, kind: Any) -> Json:
        """The schema of one of the types that the operations name."""
        return self._by_type[id(kind)]


def _types() -> Iterator[Any]:
    yield Problem
    for one in OPERATIONS:
        yield from (parameter.type for parameter in one.parameters)
        yield from (kind for answer in one.answers.values() for kind in answer.content.values() if kind is not None)
        if one.body is not None:
            yield one.body


def _pruned(schema: Json) -> Json:
    """Without titles that say a component's name again."""
    return {key: value for key, value in schema.items() if key != "title"}


def _operation(one: Operation, schemas: _Schemas) -> Json:
    described: Json = {"operationId": one.id, "summary": one.summary}
    if one.description:
        described["description"] = one.description
    if one.parameters:
        described["parameters"] = [_parameter(parameter, schemas) for parameter in one.parameters]
    if one.body is not None:
        described["requestBody"] = _body(one, schemas)
    answers = {str(int(status)): _answer(answer, schemas) for status, answer in one.answers.items()}
    errors = error_statuses(dict.fromkeys([*COMMON_ERRORS, *one.errors]))
    described["responses"] = answers | {str(int(status)): _error(status, codes) for status, codes in errors.items()}
    return described


def _parameter(parameter: Parameter, schemas: _Schemas) -> Json:
    schema = schemas.of(parameter.type)
    described: Json = {"name": parameter.name, "in": parameter.place, "description": parameter.description}
    if parameter.place == "path":
        described["required"] = True
    if schema.get("type") == "array":
        described |= {"style": "form", "explode": False}
    return described | {"schema": schema}


def _body(one: Operation, schemas: _Schemas) -> Json:
    schema = schemas.of(one.body)
    content: Json = {JSON: {"schema": schema}}
    if one.upload:
        parts = {"job": schema, "context": {"type": "string", "contentMediaType": "application/octet-stream"}}
        form = {"type": "object", "properties": parts, "required": ["job"]}
        content[MULTIPART] = {"schema": form, "encoding": {"job": {"contentType": JSON}}}
    return {"required": one.is_body_required, "content": content}


def _answer(answer: Answer, schemas: _Schemas) -> Json:
    described: Json = {"description": answer.description}
    if answer.headers:
        described["headers"] = {
            name: {"description": text, "schema": {"type": "string"}} for name, text in answer.headers.items()
        }
    if answer.content:
        described["content"] = {
            media_type: {"schema": {"type": "string"} if kind is None else schemas.of(kind)}
            for media_type, kind in answer.content.items()
        }
    return described


def _error(status: HTTPStatus, codes: list[ErrorCode]) -> Json:
    problem = {"allOf": [{"$ref": REF.format(name="Problem")}, {"properties": {"code": {"enum": codes}}}]}
    described: Json = {
        "description": f"{status.phrase}: {', '.join(codes)}.",
        "content": {PROBLEM: {"schema": problem}},
    }
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        wait = {"description": "Seconds after which to try again.", "schema": {"type": "integer"}}
        described["headers"] = {"Retry-After": wait}
    return described
