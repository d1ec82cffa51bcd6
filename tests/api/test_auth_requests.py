"""Tokens on requests: where they are wanted, how a refusal looks in each API, and that no body is read before."""

import asyncio
import socket
from pathlib import Path

import pytest
from aiohttp.test_utils import make_mocked_request
from bare_app import MINIMAL, BareApp, bare_app
from calls import raw_request
from signing import P256, RSA, SECRET, bearer, by_public_keys, by_secret, jwk, jwks_file, token, written
from structlog.testing import capture_logs

from imagejobd.api.auth import Authentication
from imagejobd.api.keys import Auth
from imagejobd.model.errors import Permanent

JOBS = "/api/v2/jobs"
OPEN = ["/healthz", "/readyz", "/metrics"]
# A path of each API, with how it says no.
PATHS = {
    "/api/v2/jobs": lambda body: body["detail"],
    "/api/v1/build": lambda body: body["Error"],
    "/api/distribute/image": lambda body: body["msg"],
}


async def status(app: BareApp, path: str = JOBS, method: str = "GET", **headers: str) -> int:
    async with app.client.request(method, path, headers=headers) as response:
        if response.status == 401:
            assert response.headers["WWW-Authenticate"] == "Bearer"
        return response.status


async def test_anonymous_callers_are_welcome_by_default(tmp_path: Path) -> None:
    """Without a token a caller is tenant `local`; with one, who it says; both in the same daemon."""
    async with bare_app(tmp_path, auth=by_secret(tmp_path)) as app:
        anonymous = await app.submit()
        assert (anonymous["tenant"], anonymous["client"], anonymous["submitter"]) == ("local", "", {})
        async with app.client.post(JOBS, json=MINIMAL, headers=bearer(token())) as response:
            job = await response.json()
        assert (job["tenant"], job["client"]) == ("1", "7")
        assert job["submitter"] == {"sub": "jane", "email": "jane@company.example"}


@pytest.mark.parametrize("path", PATHS)
async def test_required_tokens(tmp_path: Path, path: str) -> None:
    """With `required` every API answers 401 in its own words to who brings none; what monitors ask stays open."""
    async with bare_app(tmp_path, auth=by_secret(tmp_path, required=True)) as app:
        for headers in ({}, bearer("x.y.z")):
            async with app.client.post(path, json={}, headers=headers) as response:
                assert response.status == 401
                assert response.headers["WWW-Authenticate"] == "Bearer"
                assert "token" in PATHS[path](await response.json())
        assert await status(app, "/no/such/path") == 401
        assert await status(app, **bearer(token())) == 200
        for open_path in OPEN:
            assert await status(app, open_path) == 200


@pytest.mark.parametrize("path", [*PATHS, "/no/such/path"])
async def test_bad_tokens_are_not_anonymous(tmp_path: Path, path: str) -> None:
    """A token that is no good is 401 also where none is needed; what monitors ask does not care."""
    async with bare_app(tmp_path, auth=by_secret(tmp_path)) as app:
        bad = bearer(token(b"another secret, of thirty-two bytes."))
        for headers in (bad, bearer(token(exp=1)), bearer("")):
            assert await status(app, path, "POST", **headers) == 401
        for open_path in OPEN:
            assert await status(app, open_path, **bad) == 200


@pytest.mark.parametrize(
    "value",
    ["", "Basic amFuZTpwYXNz", "Token {}", "{}", "Bearer", "Bearer  ", "Bearer{}", "Bearer: {}", "Bearer\t{}",
     "Bearer {}, Bearer {}", "Bearer {} x", 'Bearer token="{}"', "Digest username=jane", "Negotiate {}"],
)  # fmt: skip
async def test_other_schemes(tmp_path: Path, value: str) -> None:
    """Whatever is not `Bearer` and one token is refused, a good token inside it or not."""
    async with bare_app(tmp_path, auth=by_secret(tmp_path)) as app:
        assert await status(app, Authorization=value.replace("{}", token())) == 401


@pytest.mark.parametrize("value", ["Bearer {}", "bearer {}", "BEARER {}", "BeArEr   {}", "Bearer {}  "])
async def test_the_scheme_has_no_case(tmp_path: Path, value: str) -> None:
    """`Bearer` in any case, and spaces around the token, are as RFC 9110 has them."""
    async with bare_app(tmp_path, auth=by_secret(tmp_path)) as app:
        assert await status(app, Authorization=value.replace("{}", token())) == 200


async def said(app: BareApp, request: bytes) -> bytes:
    """What the application answers to bytes on its socket."""
    reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
    writer.write(request)
    try:
        async with asyncio.timeout(5):
            return await reader.read(65536)
    finally:
        writer.close()


async def test_a_request_for_no_path(tmp_path: Path) -> None:
    """`OPTIONS *` is refused like any other request, in the native API's words."""
    for required, status in ((True, 401), (False, 404)):
        async with bare_app(tmp_path, auth=by_secret(tmp_path, required=required)) as app:
            answer = await said(app, b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 %d " % status)
            assert b"application/problem+json" in answer


async def test_two_authorization_headers(tmp_path: Path) -> None:
    """Which of two counts would be a guess, so neither does, even if they are the same."""
    async with bare_app(tmp_path, auth=by_secret(tmp_path)) as app:
        for other in (token(), token(tid=2), "x"):
            twice = f"GET {JOBS} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token()}\r\n"
            answer = await said(app, f"{twice}authorization: Bearer {other}\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 401 ")
            assert b"more than one Authorization header" in answer


@pytest.mark.parametrize("size", [8_050, 8_190, 9_000, 60_000, 1_000_000])
async def test_huge_tokens(tmp_path: Path, size: int) -> None:
    """A token beyond the bound is refused, by us or by the HTTP parser."""
    async with bare_app(tmp_path, auth=by_secret(tmp_path)) as app:
        request = raw_request(JOBS, {"Authorization": "Bearer " + "x" * size}, method="GET")
        try:
            answer = await said(app, request)
        except ConnectionError:
            return
        assert answer.split(b" ", 2)[1] in (b"401", b"400", b"431")


async def test_odd_bytes(tmp_path: Path) -> None:
    """Bytes that are no ASCII are refused without a traceback."""
    async with bare_app(tmp_path, auth=by_secret(tmp_path)) as app:
        for value in (b"Bearer \xff\xfe.\xff.\xff", "Bearer é.é.é".encode(), b"\xff Bearer x", b"B\xc3\xa9arer x.y.z"):
            head = b"GET /api/v2/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: " + value + b"\r\n\r\n"
            assert (await said(app, head)).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("path", PATHS)
async def test_refused_before_the_body(tmp_path: Path, path: str) -> None:
    """The answer comes while the body has not: nobody unknown keeps the daemon reading."""
    async with bare_app(tmp_path, auth=by_secret(tmp_path, required=True)) as app:
        for headers in ({}, bearer(token(exp=1))):
            head = raw_request(path, {"Content-Type": "application/json"} | headers, b"", length=100_000)
            reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
            writer.write(head)
            async with asyncio.timeout(5):
                assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
            writer.close()


async def test_keys_in_headers_are_not_fetched(tmp_path: Path) -> None:
    """A token that says where its key can be had makes the daemon connect nowhere."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/key"
        server.settimeout(0.2)
        async with bare_app(tmp_path, auth=by_public_keys(tmp_path, RSA)) as app:
            for name in ("jku", "x5u"):
                text = token(RSA, "RS256", headers={name: url, "kid": url})
                assert await status(app, **bearer(text)) == 200
                assert await status(app, **bearer(text[:-4] + "AAAA")) == 401
        with pytest.raises(TimeoutError):
            server.accept()


async def test_the_operator_hears_of_missing_keys_once(tmp_path: Path) -> None:
    """Without any key a token is 401, and the log says why, once and without the token."""
    with capture_logs() as logs:
        async with bare_app(tmp_path) as app:
            for _ in range(3):
                assert await status(app, **bearer(token())) == 401
    [line] = [entry for entry in logs if "token" in entry["event"]]
    assert "jwt_secret_file" in line["event"]
    assert token() not in str(logs)


async def test_short_secrets_are_told_to_the_operator(tmp_path: Path) -> None:
    """A start with a short secret leaves a warning in the log that does not show it."""
    with capture_logs() as logs:
        Authentication(by_secret(tmp_path, b"too short"))
    [line] = logs
    assert line["log_level"] == "warning"
    assert "9 bytes" in line["event"]
    assert "too short" not in str(line)


async def test_reload(tmp_path: Path) -> None:
    """New keys count at once and old ones no longer, remembered tokens included; a bad file changes nothing."""
    auth = by_secret(tmp_path)
    authentication = Authentication(auth)
    old, new = b"1" * 32, b"2" * 32

    def taken() -> list[bytes]:
        return [secret for secret in (SECRET, old, new) if is_taken(authentication, token(secret))]

    assert taken() == [SECRET]
    written(tmp_path, "jwt.secret", old)
    assert taken() == [SECRET]
    for secret in (old, new):
        written(tmp_path, "jwt.secret", secret)
        await authentication.reload()
        assert taken() == [secret]
    written(tmp_path, "jwt.secret", b"")
    with capture_logs() as logs:
        await authentication.reload()
    assert taken() == [new]
    [line] = logs
    assert line["log_level"] == "error"
    assert str(tmp_path / "jwt.secret") in line["error"]


async def test_rotation_in_a_jwks(tmp_path: Path) -> None:
    """A provider's next key is added, used, and the first one dropped; each step counts from the reload on."""
    first, second = jwk(RSA, kid="1"), jwk(P256, kid="2")
    old, new = token(RSA, "RS256", headers={"kid": "1"}), token(P256, "ES256", headers={"kid": "2"})
    authentication = Authentication(Auth(jwks_file=jwks_file(tmp_path, first)))
    for keys, taken in (((first,), [old]), ((first, second), [old, new]), ((second,), [new])):
        jwks_file(tmp_path, *keys)
        await authentication.reload()
        assert [text for text in (old, new) if is_taken(authentication, text)] == taken


def is_taken(authentication: Authentication, text: str) -> bool:
    request = make_mocked_request("GET", JOBS, headers=bearer(text))
    try:
        return authentication.caller(request).tenant == "1"
    except Permanent:
        return False


def test_settings_show_no_secret(tmp_path: Path) -> None:
    """What represents the authentication names files, not what is in them."""
    auth = by_secret(tmp_path)
    assert SECRET.decode() not in f"{auth!r} {Authentication(auth)!r} {vars(Authentication(auth))!r}"
    assert Auth().has_keys is False


def test_no_key_does_not_read_like_a_bad_token() -> None:
    """Who sends a token to a daemon that has no key is told whose affair that is, and the operator once."""
    authentication = Authentication(Auth())
    request = make_mocked_request("GET", JOBS, headers=bearer(token()))
    with capture_logs() as logs:
        for _ in range(2):
            with pytest.raises(Permanent, match="no key to check tokens with; its operator"):
                authentication.caller(request)
    assert len(logs) == 1
