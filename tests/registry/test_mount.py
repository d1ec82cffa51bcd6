"""Blobs that a registry has elsewhere already."""

import pytest
from registry_content import described, digest_of, get_blob, noise
from registry_content import put_blob as put_before
from repositories import HASTE, body, writer

from harness.proxy import Answer, FaultProxy
from harness.registry import PASSWORD, USERNAME, Registry
from harness.services import require
from harness.token_server import TokenServer
from imagejobd.model.egress import Egress
from imagejobd.model.secrets import Credentials, Secret
from imagejobd.registry.blobs import Put, put_blob
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.manifest import Descriptor

UPLOADS = "/v2/.*/blobs/uploads/.*"
MIB = 1024 * 1024


def is_there(registry: Registry, path: str, blob: Descriptor) -> bool:
    return registry.has_blob(path, blob.digest)


async def test_mount(registry: Registry, proxy: FaultProxy, client: RegistryClient) -> None:
    """A blob that the registry has elsewhere is mounted in one request, and its bytes are never asked for."""
    blob = put_before(registry, "mount/from", noise(1000, seed=3))
    target = writer(client, proxy.host, "mount/to")
    put = await put_blob(target, blob, lambda: pytest.fail("no bytes are needed"), mount_from="mount/from")
    assert put is Put.MOUNTED
    assert is_there(registry, "mount/to", blob)
    assert [seen.method for seen in proxy.requests] == ["POST"]


async def test_mount_that_becomes_a_session(registry: Registry, proxy: FaultProxy, client: RegistryClient) -> None:
    """A registry that does not find the blob there answers with a session, which is used."""
    content = noise(1000, seed=4)
    target = writer(client, proxy.host, "mount/to")
    assert await put_blob(target, described(content), body(content), mount_from="mount/nowhere") is Put.SENT
    assert get_blob(registry, "mount/to", digest_of(content)) == content
    assert [seen.method for seen in proxy.requests] == ["POST", "PUT"]


@pytest.mark.parametrize("status", [400, 403, 404, 405])
async def test_mount_refused(registry: Registry, proxy: FaultProxy, client: RegistryClient, status: int) -> None:
    """The Hub and old Quay refuse mounts (400), and who pushes here need not pull there: the blob is sent."""
    content = noise(1000, seed=5 + status)
    proxy.add("POST", r".*mount=.*", Answer(status))
    target = writer(client, proxy.host, "mount/to")
    assert await put_blob(target, described(content), body(content), mount_from="mount/from") is Put.SENT
    assert get_blob(registry, "mount/to", digest_of(content)) == content


async def test_mount_with_tokens() -> None:
    """A mount asks for the push first and then for the pull at the other repository, in one token."""
    require("docker-registry")
    login = Credentials(USERNAME, Secret(PASSWORD))
    with TokenServer() as tokens, Registry(tokens=tokens) as registry:
        blob = put_before(registry, "mount/from", noise(1000, seed=18))
        async with RegistryClient({}, Egress(), timing=HASTE) as client:
            target = writer(client, registry.host, "mount/to", login=login)
            assert await put_blob(target, blob, lambda: pytest.fail("no bytes are needed"), mount_from="mount/from")
        assert is_there(registry, "mount/to", blob)
        (asked,) = tokens.requests
    assert asked.scopes == ("repository:mount/to:pull,push", "repository:mount/from:pull")
