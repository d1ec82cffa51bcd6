"""The OpenAPI document: it has every route, it is sound, and the table of errors in the manual is true."""

import re
from http import HTTPStatus
from pathlib import Path
from typing import Any

from bare_app import BareApp

from imagejobd.api.openapi import PATH, document
from imagejobd.api.operations import OPERATIONS
from imagejobd.api.wire import STATUS_OF
from imagejobd.model.errors import ErrorCode

ERRORS_PAGE = Path(__file__).parents[2] / "docs" / "errors.md"
PREFIX = "/api/v2/"
# Codes that are in `status_of` by their being temporary, and those that no request is refused with.
OF_TEMPORARY = {
    ErrorCode.DRAINING: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
}


def routes_of(app: BareApp) -> set[tuple[str, str]]:
    """All routes, as the document writes them; HEAD comes with GET."""
    routes = {(route.method.lower(), route.resource.canonical) for route in app.routes if route.resource}
    return {(method, path) for method, path in routes if method in ("get", "post")}


def documented() -> set[tuple[str, str]]:
    return {(operation.method, operation.path) for operation in OPERATIONS}


async def test_every_route_is_in_the_document(app: BareApp) -> None:
    """No route of the native API lacks an entry."""
    assert {(method, path) for method, path in routes_of(app) if path.startswith(PREFIX)} <= documented()


async def test_every_entry_has_a_route(app: BareApp) -> None:
    """The document promises nothing that is not there."""
    assert documented() <= routes_of(app)


async def test_the_document_is_served(app: BareApp) -> None:
    """As JSON, to everybody, and without parameters."""
    async with app.client.get(PATH) as response:
        assert response.status == 200
        assert response.content_type == "application/json"
        assert (await response.json())["openapi"].startswith("3.1")
    async with app.client.get(f"{PATH}?x=1") as response:
        assert response.status == 400
        assert (await response.json())["code"] == "invalid"


def test_the_document_is_sound() -> None:
    """Every reference leads somewhere, every component is used, and parameters of a path are in it."""
    text = str(document())
    components = set(document()["components"]["schemas"])
    assert set(re.findall(r"#/components/schemas/(\w+)", text)) == components
    for path, methods in document()["paths"].items():
        for operation in methods.values():
            placed = {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"}
            assert placed == set(re.findall(r"{(\w+)}", path))
    ids = [operation.id for operation in OPERATIONS]
    assert len(set(ids)) == len(ids)


def test_kinds_are_told_apart() -> None:
    """A submission is that of exactly one kind, which its `kind` names, with all that its spec may have."""
    schemas: dict[str, Any] = document()["components"]["schemas"]
    submission = schemas["Submission"]
    mapping = submission["discriminator"]["mapping"]
    assert set(mapping) == {"build", "run", "dispatch", "distribute"}
    assert [one["$ref"] for one in submission["oneOf"]] == list(mapping.values())
    build = schemas["BuildInput"]["properties"]
    assert {"image", "dockerfile", "dockerfile_path", "tar_url", "password", "pull"} <= build.keys()
    assert "context" not in build
    assert "auth" in schemas["SourceInput"]["properties"]


def test_errors_say_their_codes() -> None:
    """Each refusal is a problem document whose `code` is one of those that go with its status."""
    for methods in document()["paths"].values():
        for operation in methods.values():
            for status, answer in operation["responses"].items():
                problem = answer.get("content", {}).get("application/problem+json")
                if problem is None:
                    assert int(status) < 400 or status == "416"
                    continue
                for code in problem["schema"]["allOf"][1]["properties"]["code"]["enum"]:
                    assert STATUS_OF.get(code, HTTPStatus(int(status))) == int(status)


def test_the_table_of_errors() -> None:
    """The manual has each code once, with the status that it really gets."""
    rows = re.findall(
        r"^\| `(\w+)` \|([^|]+)\| (\d+|-) \| (yes|no|depends|-) \|([^|]+)\|$", ERRORS_PAGE.read_text(), re.M
    )
    assert [row[0] for row in rows] == [code.value for code in ErrorCode]
    told = {ErrorCode(code): status for code, _, status, _, _ in rows}
    statuses = {code: str(int(status)) for code, status in (STATUS_OF | OF_TEMPORARY).items()}
    assert told == {code: statuses.get(code, "-") for code in ErrorCode}
