"""What registries do that docker-registry does not show: tokens, redirects, missing and lying answers."""

import base64
import hashlib
from urllib.parse import parse_qs

import pytest
from aiohttp import web
from fake_registry import DIGEST, TOKEN, FakeRegistry, manifest

from imagejobd.model.egress import Egress, EgressSettings
from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.model.reference import ImageReference
from imagejobd.model.secrets import Credentials, Secret
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.limits import TRIES_MAX
from imagejobd.registry.manifest import MANIFEST_MAX_BYTES

PASSWORD = "correct-horse"
BUILDER = Credentials("builder", Secret(PASSWORD))


def app(fake: FakeRegistry) -> ImageReference:
    return ImageReference.parse(f"{fake.host}/team/app:1")


@pytest.mark.parametrize("field", ["token", "access_token"])
async def test_token_flow(fake: FakeRegistry, client: RegistryClient, field: str) -> None:
    """The challenge's token server gets scope, service and password; the registry gets the token only."""
    fake.on_token = lambda _: web.json_response({field: TOKEN, "expires_in": 60})
    assert await client.head_manifest(app(fake), BUILDER) == DIGEST
    asked, token, again = fake.seen
    assert "Authorization" not in asked.headers
    assert parse_qs(token.query_string) == {
        "fixed": ["1"],
        "scope": ["repository:team/app:pull"],
        "service": ["fake registry"],
    }
    assert base64.b64decode(token.headers["Authorization"].removeprefix("Basic ")) == b"builder:correct-horse"
    assert again.headers["Authorization"] == f"Bearer {TOKEN}"


async def test_anonymous_token(fake: FakeRegistry, client: RegistryClient) -> None:
    """Public repositories of token registries are read without a login."""
    assert await client.head_manifest(app(fake), None) == DIGEST
    assert "Authorization" not in fake.seen[1].headers


@pytest.mark.parametrize("credentials", [None, BUILDER])
async def test_token_refused(fake: FakeRegistry, client: RegistryClient, credentials: Credentials | None) -> None:
    """A token server that says no denies for good, and an echoed password does not reach the message."""
    errors = {"errors": [{"code": "UNAUTHORIZED", "message": f"wrong: {PASSWORD}"}]}
    fake.on_token = lambda _: web.json_response(errors, status=401)
    with pytest.raises(Permanent) as denied:
        await client.head_manifest(app(fake), credentials)
    assert denied.value.code is ErrorCode.DENIED
    assert PASSWORD not in denied.value.message


async def test_token_server_overloaded(fake: FakeRegistry, client: RegistryClient) -> None:
    """The token server's Retry-After counts as the registry's."""
    fake.on_token = lambda _: web.Response(status=429, headers={"Retry-After": "3"})
    with pytest.raises(Temporary) as busy:
        await client.head_manifest(app(fake), None)
    assert busy.value.retry_after_s == 3


@pytest.mark.parametrize("body", [b"{}", b"not json", b'{"token":"a\\r\\nX-Injected: 1"}', b'{"token":7}'])
async def test_unusable_token(fake: FakeRegistry, client: RegistryClient, body: bytes) -> None:
    """What cannot be a header value never becomes one."""
    fake.on_token = lambda _: web.Response(body=body)
    with pytest.raises(Temporary, match="no usable token"):
        await client.head_manifest(app(fake), None)


@pytest.mark.parametrize("realm", ["", "ftp://host/token", "token", "http://", "http://[::1"])
async def test_challenge_without_a_usable_realm(fake: FakeRegistry, client: RegistryClient, realm: str) -> None:
    """Only an http(s) URL, or a path of the registry's own, is a token server; where the password is refused in its
    place, that is what is wrong."""
    header = {"WWW-Authenticate": f'Bearer realm="{realm}"'}
    fake.on_manifest = lambda _: web.Response(status=401, headers=header)
    with pytest.raises(Permanent, match="names no token server"):
        await client.head_manifest(app(fake), BUILDER)


async def test_unknown_challenge(fake: FakeRegistry, client: RegistryClient) -> None:
    """A login of another sort is named in the refusal."""
    fake.on_manifest = lambda _: web.Response(status=401, headers={"WWW-Authenticate": "Negotiate"})
    with pytest.raises(Permanent, match="negotiate") as denied:
        await client.head_manifest(app(fake), BUILDER)
    assert denied.value.code is ErrorCode.DENIED


async def test_colon_in_user_name(fake: FakeRegistry, client: RegistryClient) -> None:
    """HTTP Basic cannot carry such a user name, so it is not sent."""
    fake.on_manifest = lambda _: web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=x"})
    with pytest.raises(Permanent, match="colon"):
        await client.head_manifest(app(fake), Credentials("a:b", Secret("password")))


@pytest.mark.parametrize("head_status", [200, 405])
async def test_digest_is_computed_where_none_is_told(
    fake: FakeRegistry, client: RegistryClient, head_status: int
) -> None:
    """Without the optional header, or without HEAD, the manifest itself is read and hashed."""
    manifest = b'{"schemaVersion":2}'
    fake.on_manifest = lambda request: (
        web.Response(body=manifest) if request.method == "GET" else web.Response(status=head_status)
    )
    assert await client.head_manifest(app(fake), None) == f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    assert all("manifest.list.v2+json" in request.headers["Accept"] for request in fake.seen)


async def test_endless_manifest(fake: FakeRegistry, client: RegistryClient) -> None:
    """A manifest beyond 4 MiB is refused, not read."""
    fake.on_manifest = lambda request: web.Response(
        body=bytes(MANIFEST_MAX_BYTES + 1 if request.method == "GET" else 0)
    )
    with pytest.raises(Permanent) as refused:
        await client.head_manifest(app(fake), None)
    assert refused.value.code is ErrorCode.TOO_LARGE


@pytest.mark.parametrize(("host", "is_sent"), [("127.0.0.1", True), ("localhost", False)])
async def test_redirect_keeps_the_secret_at_home(
    fake: FakeRegistry, client: RegistryClient, host: str, is_sent: bool
) -> None:
    """A redirect within the registry keeps the authorization, one to another host does not get it."""
    target = f"http://{fake.host}/elsewhere".replace("127.0.0.1", host)

    def on_manifest(request: web.Request) -> web.StreamResponse:
        if request.path == "/elsewhere":
            return manifest()
        if "Authorization" not in request.headers:
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        return web.Response(status=307, headers={"Location": target})

    fake.on_manifest = on_manifest
    assert await client.head_manifest(app(fake), BUILDER) == DIGEST
    assert ("Authorization" in fake.seen[-1].headers) is is_sent


@pytest.mark.parametrize("location", ["/v2/team/app/manifests/1", "ftp://host/x", "http://", "http://[::1"])
async def test_bad_redirects(fake: FakeRegistry, client: RegistryClient, location: str) -> None:
    """Redirects that lead in a circle or nowhere end in a refusal."""
    fake.on_manifest = lambda _: web.Response(status=302, headers={"Location": location})
    with pytest.raises(Permanent, match="redirects"):
        await client.head_manifest(app(fake), None)


async def test_token_server_without_tls(fake: FakeRegistry, tls_fake: FakeRegistry, client: RegistryClient) -> None:
    """A registry on TLS cannot send a password to a token server without it."""
    header = {"WWW-Authenticate": fake.challenge}
    tls_fake.on_manifest = lambda _: web.Response(status=401, headers=header)
    with pytest.raises(Permanent, match="has no TLS") as denied:
        await client.head_manifest(app(tls_fake), BUILDER)
    assert denied.value.code is ErrorCode.DENIED
    assert fake.seen == []


async def test_redirect_out_of_tls(fake: FakeRegistry, tls_fake: FakeRegistry, client: RegistryClient) -> None:
    """A redirect from TLS to plain HTTP is not followed."""
    header = {"Location": f"http://{fake.host}/elsewhere"}
    tls_fake.on_manifest = lambda _: web.Response(status=307, headers=header)
    with pytest.raises(Permanent, match="from TLS to plain HTTP"):
        await client.head_manifest(app(tls_fake), None)
    assert fake.seen == []


@pytest.mark.parametrize("host", ["127.0.0.2", "[::ffff:127.0.0.2]"])
@pytest.mark.parametrize("way", ["realm", "redirect"])
async def test_egress_holds_where_a_registry_sends_us(fake: FakeRegistry, way: str, host: str) -> None:
    """Neither a token server nor a redirect target that a registry names leads to an address that is denied."""
    target = f"http://{host}:{fake.host.rpartition(':')[2]}"
    sent = {
        "realm": (401, {"WWW-Authenticate": f'Bearer realm="{target}/token"'}),
        "redirect": (307, {"Location": f"{target}/elsewhere"}),
    }
    status, headers = sent[way]
    fake.on_manifest = lambda _: web.Response(status=status, headers=headers)
    async with RegistryClient({}, Egress(EgressSettings(deny=("127.0.0.2/32",)))) as client:
        with pytest.raises(Permanent, match=r"127\.0\.0\.2") as denied:
            await client.head_manifest(app(fake), BUILDER)
    assert denied.value.code is ErrorCode.EGRESS
    assert [request.path for request in fake.seen] == ["/v2/"]


async def test_egress_holds_for_the_registry_itself(fake: FakeRegistry) -> None:
    """Loopback is reachable by default, and is not where private addresses are denied."""
    async with RegistryClient({}, Egress(EgressSettings(allow_private=False))) as client:
        with pytest.raises(Permanent, match="allow_private is false"):
            await client.head_manifest(app(fake), None)
    assert fake.seen == []


@pytest.mark.parametrize(("failures", "is_there"), [(1, True), (TRIES_MAX - 1, True), (TRIES_MAX, False)])
async def test_a_moment_of_5xx_is_outlived(
    fake: FakeRegistry, client: RegistryClient, failures: int, is_there: bool
) -> None:
    """A HEAD that fails in the registry is repeated a few times; what fails still is said."""
    answers = [web.Response(status=502) for _ in range(failures)]
    fake.on_manifest = lambda _: answers.pop() if answers else manifest()
    if is_there:
        assert await client.head_manifest(app(fake), None) == DIGEST
    else:
        with pytest.raises(Temporary, match="502"):
            await client.head_manifest(app(fake), None)
    assert len(fake.seen) == min(failures + 1, TRIES_MAX)


async def test_a_registry_that_names_a_late_time_is_not_asked_sooner(
    fake: FakeRegistry, client: RegistryClient
) -> None:
    """A long Retry-After is for the job's retry to keep, not to be overrun by a quick repetition."""
    fake.on_manifest = lambda _: web.Response(status=503, headers={"Retry-After": "61"})
    with pytest.raises(Temporary) as busy:
        await client.head_manifest(app(fake), None)
    assert busy.value.retry_after_s == 61
    assert len(fake.seen) == 1
