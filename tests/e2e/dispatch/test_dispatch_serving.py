"""`/images/{id}` as a download: digests, ranges, and a curl that resumes."""

import hashlib
import random
import subprocess
from pathlib import Path

import pytest

from harness.dispatch_box import DispatchBox, Tenant
from harness.services import program

PAYLOAD = random.Random(4).randbytes(300_001)
DIGEST = hashlib.sha256(PAYLOAD).hexdigest()
SIZE = len(PAYLOAD)


@pytest.fixture(scope="module")
def location(box: DispatchBox) -> str:
    """Where a payload of 300,001 bytes is served."""
    tenant = box.tenant()
    job = tenant.dispatch(PAYLOAD)
    assert tenant.done(job)["location"] == {
        "digest": f"sha256:{DIGEST}",
        "size_bytes": SIZE,
        "media_type": "application/octet-stream",
    }
    shown: str = tenant.shown(job)["payload_location"]
    return shown


def test_whole(tenant: Tenant, location: str) -> None:
    """The bytes, their number, and their digest as the ETag."""
    answer = tenant.call("GET", location)
    assert (answer.status, answer.body) == (200, PAYLOAD)
    assert answer.headers["etag"].strip('"') in (DIGEST, f"sha256:{DIGEST}")
    assert answer.headers["accept-ranges"] == "bytes"
    head = tenant.call("HEAD", location)
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(SIZE))
    assert head.headers["etag"] == answer.headers["etag"]


@pytest.mark.parametrize(
    ("wanted", "first", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=299999-", 299_999, SIZE),
        ("bytes=-10", SIZE - 10, SIZE),
        ("bytes=1-999999999", 1, SIZE),
    ],
)
def test_range(tenant: Tenant, location: str, wanted: str, first: int, end: int) -> None:
    """A part is answered with 206, its place, and no byte more (RFC 9110 §14)."""
    answer = tenant.call("GET", location, headers={"Range": wanted})
    assert (answer.status, answer.body) == (206, PAYLOAD[first:end])
    assert answer.headers["content-range"] == f"bytes {first}-{end - 1}/{SIZE}"


def test_range_beyond_the_end(tenant: Tenant, location: str) -> None:
    """A part that is not there is 416, with the size."""
    answer = tenant.call("GET", location, headers={"Range": f"bytes={SIZE}-"})
    assert answer.status == 416
    assert answer.headers["content-range"] == f"bytes */{SIZE}"


@pytest.mark.parametrize("wanted", ["bytes=5-1", "lines=1-2", "bytes=", "bytes=a-b", "bytes=1-2,4-5", "bytes=-0"])
def test_odd_range(tenant: Tenant, location: str, wanted: str) -> None:
    """A range that is none, or more than one, costs no error: all of it is sent, or 416."""
    answer = tenant.call("GET", location, headers={"Range": wanted})
    assert answer.status in (200, 206, 416)
    assert answer.status != 200 or answer.body == PAYLOAD


def test_conditions(tenant: Tenant, location: str) -> None:
    """Who has it already is told so, and a resumed download of something else starts anew."""
    etag = tenant.call("HEAD", location).headers["etag"]
    assert tenant.call("GET", location, headers={"If-None-Match": etag}).status == 304
    same = tenant.call("GET", location, headers={"Range": "bytes=1-", "If-Range": etag})
    assert (same.status, same.body) == (206, PAYLOAD[1:])
    other = tenant.call("GET", location, headers={"Range": "bytes=1-", "If-Range": '"else"'})
    assert (other.status, other.body) == (200, PAYLOAD)


def test_curl_resumes(tenant: Tenant, location: str, tmp_path: Path) -> None:
    """`curl -C -` goes on where a download was cut."""
    file = tmp_path / "image"
    file.write_bytes(PAYLOAD[:123_457])
    command = [str(program("curl")), "-sS", "--fail", "-C", "-", "-o", str(file)]
    header = ["-H", f"Authorization: Bearer {tenant.token}"]
    subprocess.run([*command, *header, tenant.daemon.url + location], check=True, timeout=30)
    assert file.read_bytes() == PAYLOAD
