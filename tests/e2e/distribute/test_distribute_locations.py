"""Upload locations of every form are followed, and a login never goes to another host with them."""

from collections.abc import Callable
from urllib.parse import urlsplit, urlunsplit

import pytest

from harness.distribute_box import DistributeBox, check_copied, source, target
from harness.images import put_image
from harness.logins import BASIC
from harness.proxy import FaultProxy, RewriteLocation
from harness.registry import Registry


def relative(location: str) -> str:
    return urlunsplit(urlsplit(location)._replace(scheme="", netloc=""))


def dotted(location: str) -> str:
    """Relative to the POST's own URL, `…/blobs/uploads/`."""
    parts = urlsplit(location)
    return f"{parts.path.rpartition('/')[2]}?{parts.query}"


def without_scheme(location: str) -> str:
    return urlunsplit(urlsplit(location)._replace(scheme=""))


@pytest.mark.parametrize("rewrite", [relative, dotted, without_scheme])
def test_forms(
    box: DistributeBox,
    target_proxy: FaultProxy,
    origin: Registry,
    mirror: Registry,
    path: str,
    rewrite: Callable[[str], str],
) -> None:
    """A path, a relative reference and one without a scheme are resolved against the request."""
    image = put_image(origin, path, "1", layers=[50_000])
    target_proxy.add("POST", ".*", RewriteLocation(rewrite), times=None)
    box.copy(source(origin, path), [target(target_proxy)])
    check_copied(image, origin, path, mirror)
    assert target_proxy.received_bytes("PUT|PATCH", ".*/blobs/.*") == image.blobs_bytes


def test_another_port_gets_no_login(
    box: DistributeBox, origin: Registry, private_registry: Registry, path: str
) -> None:
    """An upload that is sent to another port goes there without Authorization, even if that means it fails."""
    put_image(origin, path, "1")
    with FaultProxy(private_registry.host) as front, FaultProxy(private_registry.host) as back:
        front.add("POST", ".*", RewriteLocation(lambda at: at.replace(front.host, back.host)), times=None)
        box.failed(box.distribute(source(origin, path), [target(front, auth=BASIC)]))
        assert back.count("PUT|PATCH", ".*") > 0
        assert [seen for seen in back.requests if "Authorization" in seen.headers] == []


def test_another_port_that_is_open_is_used(
    box: DistributeBox, target_proxy: FaultProxy, origin: Registry, mirror: Registry, path: str
) -> None:
    """An upload that is sent to another port ends there."""
    image = put_image(origin, path, "1")
    with FaultProxy(mirror.host) as back:
        target_proxy.add("POST", ".*", RewriteLocation(lambda at: at.replace(target_proxy.host, back.host)), times=None)
        box.copy(source(origin, path), [target(target_proxy)])
        assert back.received_bytes("PUT|PATCH") == image.blobs_bytes
    check_copied(image, origin, path, mirror)
