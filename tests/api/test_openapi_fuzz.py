"""Requests made of the OpenAPI document, good and bad: no answer that is not in it, and none that is a defect."""

import asyncio
from contextlib import suppress
from typing import Any

import requests
import schemathesis
from bare_app import BareApp
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from imagejobd.api.openapi import PATH

SEED = 20260101
EXAMPLES_MAX = 40
REQUEST_TIMEOUT_S = 20.0
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
# What never ends: only who goes away ends it.
ENDLESS = frozenset({"/api/v2/events"})
STRANGE_IDS = ["0", "1" * 30, "00000000-0000-7000-8000-000000000000", "%00", "é", "a b"]
FIELDS: dict[str, Any] = {"priority": 3, "labels": {"team": "blue"}, "not_before": "2999-01-01T00:00:00Z"}
SUBMISSIONS: dict[str, dict[str, Any]] = {
    "build": {"spec": {"image": "example.org/app", "dockerfile": "FROM scratch\n", "tags": ["1"]}, **FIELDS},
    "run": {"spec": {"dockerfile": "FROM scratch\n"}},
    "dispatch": {"spec": {}, "context": "RlJPTSBzY3JhdGNoCg=="},
    "distribute": {
        "spec": {
            "source": {"endpoint": "127.0.0.1:9", "image": "a", "tags": {"newest": 1}, "auth": {"token": "hush"}},
            "targets": [{"endpoint": "127.0.0.1:8"}],
        }
    },
}


async def test_answers_are_those_of_the_document(app: BareApp) -> None:
    """Each operation, asked within its schema and beyond it: a documented status, type and form, and never a 5xx."""
    job = await app.submit()
    async with app.client.post(f"/api/v2/jobs/{job['id']}/cancel") as response:
        assert response.status == 200
    # A job that has ended: to wait for it or to follow its log is to be answered at once.
    ids = [job["id"], str(job["number"]), *STRANGE_IDS]
    paths = {route.resource.canonical for route in app.routes if route.resource} - ENDLESS
    async with app.client.get(PATH) as response:
        document = await response.json()
    document["paths"] = {path: methods for path, methods in document["paths"].items() if path in paths}
    url = f"http://127.0.0.1:{app.port}"
    for result in _schema(document, url).get_all_operations():
        for mode in GenerationMode:
            # What has no parameters cannot be asked wrongly.
            with suppress(Unsatisfiable):
                await asyncio.to_thread(_ask, result.ok(), mode, ids)


async def test_good_answers_are_those_of_the_document(app: BareApp) -> None:
    """A job of each kind is taken as the document writes it, and is shown as it says."""
    url = f"http://127.0.0.1:{app.port}"
    async with app.client.get(PATH) as response:
        schema = _schema(await response.json(), url)
    for kind, fields in SUBMISSIONS.items():
        submit = schema["/api/v2/jobs"]["post"].Case(body={"kind": kind, **fields}, media_type="application/json")
        status, job = await asyncio.to_thread(_called, submit)
        assert status == 201
        for path in ("", "/log", "/events"):
            asked = schema[f"/api/v2/jobs/{{id}}{path}"]["get"].Case(path_parameters={"id": job["id"]})
            assert (await asyncio.to_thread(_called, asked))[0] == 200
        for path, expected in (("cancel", 200), ("retry", 201 if kind != "distribute" else 409)):
            asked = schema[f"/api/v2/jobs/{{id}}/{path}"]["post"].Case(path_parameters={"id": job["id"]})
            assert (await asyncio.to_thread(_called, asked))[0] == expected
    listing = schema["/api/v2/jobs"]["get"].Case(query={"limit": 3})
    status, jobs = await asyncio.to_thread(_called, listing)
    assert (status, len(jobs["jobs"])) == (200, 3)


def _schema(document: dict[str, Any], url: str) -> schemathesis.BaseSchema:
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=url)
    return schema


def _called(case: schemathesis.Case) -> tuple[int, Any]:
    response = case.call(timeout=REQUEST_TIMEOUT_S)
    case.validate_response(response, checks=CHECKS)
    return response.status_code, response.json() if "json" in response.headers["content-type"][0] else None


def _ask(operation: schemathesis.APIOperation, mode: GenerationMode, ids: list[str]) -> None:
    @seed(SEED)
    @settings(
        max_examples=EXAMPLES_MAX,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), job=st.sampled_from(ids))
    def ask(case: schemathesis.Case, job: str) -> None:
        if "id" in case.path_parameters:
            case.path_parameters["id"] = job
        response = case.call(session=session, timeout=REQUEST_TIMEOUT_S)
        case.validate_response(response, checks=CHECKS)

    with requests.Session() as session:
        ask()
