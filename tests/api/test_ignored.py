"""What the older APIs make nothing of, named in a `Warning` header; bodies and statuses are as they were."""

import json
from typing import Any

import pytest
from bare_app import BareApp

from imagejobd.api.ignored import NAMES_MAX

FORM = {"Content-Type": "multipart/form-data; boundary=b"}
BUILD = {"image_name": "example.org/app", "dockerfile": "FROM scratch\n"}


def form(parts: dict[str, str]) -> bytes:
    head = '--b\r\nContent-Disposition: form-data; name="{}"\r\n\r\n{}\r\n'
    return "".join(head.format(name, value) for name, value in parts.items()).encode() + b"--b--"


async def warned(app: BareApp, path: str, **request: Any) -> str | None:
    async with app.client.post(path, **request) as response:
        assert response.status in (200, 201), await response.text()
        return response.headers.get("Warning")


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"nocache": True, "username": "me", "password": "x"}, None),
        ({"email": "", "tarUrl": None}, None),
        ({"email": "me@example.org"}, "email"),
        ({"Pull": True, "tarUrl": "http://example.org/x"}, "pull, tarurl"),
        ({"username": "me"}, "username"),
    ],
    ids=["none", "empty", "email", "others", "user alone"],
)
async def test_builder(app: BareApp, fields: dict[str, Any], names: str | None) -> None:
    """What has no meaning, or loses to another field, is named; empty values are none."""
    expected = names and f'299 imagejobd "ignored: {names}"'
    assert await warned(app, "/api/v1/build", json=BUILD | fields) == expected


async def test_builder_form(app: BareApp) -> None:
    """A tar beside a Dockerfile is not looked at."""
    data = form({"Json": json.dumps(BUILD)})
    assert await warned(app, "/api/v1/build", data=data, headers=FORM) is None


async def test_run(app: BareApp) -> None:
    """Further fields of the form."""
    file = {"file": "FROM scratch\n"}
    assert await warned(app, "/run", data=form(file), headers=FORM) is None
    answer = await warned(app, "/run", data=form({"name": "x", **file, "tag": "y"}), headers=FORM)
    assert answer == '299 imagejobd "ignored: name, tag"'


async def test_distribute(app: BareApp) -> None:
    """What the original had for itself, and how to get a token beside a login."""
    login = {"basicauth": {"user": "me", "password": "word"}}
    request: dict[str, Any] = {
        "source": {"endpoint": "http://127.0.0.1:9", "image": "a", "ref": "1", "auth": login},
        "targets": [{"endpoint": "http://127.0.0.1:8", "auth": login}],
    }
    assert await warned(app, "/api/distribute/image", json=request) is None
    request["targets"][0]["auth"] = login | {"url": "http://127.0.0.1:7", "token_type": "JWT"}
    answer = await warned(app, "/api/distribute/image", json=request | {"issuer": "x", "retries_left": 3})
    assert answer == ('299 imagejobd "ignored: issuer, retries_left, targets[0].auth.url, targets[0].auth.token_type"')


async def test_names_are_a_strangers(app: BareApp) -> None:
    """No name ends the text or the header, and their number and length are bounded."""
    names = ['a"b', "c\\d", "e\r\nSet-Cookie: f", "ü", "g" * 1000]
    answer = await warned(app, "/api/v1/build", json=BUILD | dict.fromkeys(names, 1))
    assert answer == f'299 imagejobd "ignored: a?b, c?d, e??set-cookie: f, ?, {"g" * 64}"'
    answer = await warned(app, "/api/v1/build", json=BUILD | {str(number): 1 for number in range(100)})
    assert answer is not None
    assert answer.endswith(f'9 and {100 - NAMES_MAX} more"')
