"""A payload of 100 MB: never in memory as a whole, right to the last byte, gone without a trace when it is wrong."""

import base64
import hashlib
import http.client
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.client import Answer
from harness.dispatch_box import DispatchBox
from harness.engine import PrivateEngine
from harness.waiting import until

# No multiple of 3, so that base64 ends in padding, and none of any buffer.
PAYLOAD_BYTES = 100_000_001
GROWTH_MAX_BYTES = 64 * 1024 * 1024
# A multiple of 3, so that the pieces' base64 can be joined.
PIECE_BYTES = 3 * 100_000
REQUEST_TIMEOUT_S = 60


@pytest.fixture(scope="module")
def large(engine: PrivateEngine) -> Iterator[DispatchBox]:
    with DispatchBox(engine) as made:
        yield made
        made.check_healthy()


def pieces() -> Iterator[bytes]:
    """The payload, in pieces; the same each time."""
    dice, left = random.Random(9), PAYLOAD_BYTES
    block = dice.randbytes(PIECE_BYTES)
    while left:
        yield block[: min(left, PIECE_BYTES)]
        left -= min(left, PIECE_BYTES)
        block = block[7:] + block[:7]


def post(box: DispatchBox, md5: str) -> Answer:
    """The dispatcher's request, streamed."""
    head = f'{{"encoding": "base64", "MD5": "{md5}", "content": "'.encode()
    length = len(head) + 4 * ((PAYLOAD_BYTES + 2) // 3) + 2

    def body() -> Iterator[bytes]:
        yield head
        for piece in pieces():
            yield base64.b64encode(piece)
        yield b'"}'

    connection = http.client.HTTPConnection("127.0.0.1", box.daemon.port, timeout=REQUEST_TIMEOUT_S)
    headers = {"Authorization": f"Bearer {box.tenant().token}", "Content-Length": str(length)}
    connection.request("POST", "/api/v1/job", body(), headers)
    response = connection.getresponse()
    answer = Answer(response.status, {}, response.read())
    connection.close()
    return answer


def peak_bytes(pid: int) -> int:
    """The most memory that a process had resident since the last `forget_peak`."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)


def forget_peak(pid: int) -> None:
    """Start anew with what is resident now (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def test_large_payload(large: DispatchBox) -> None:
    """It is taken in, checked and served with less memory than it has, and its MD5 and SHA-256 are right."""
    md5, sha256 = hashlib.md5(), hashlib.sha256()
    for piece in pieces():
        md5.update(piece)
        sha256.update(piece)
    tenant = large.tenant()
    tenant.done(tenant.dispatch(b"warm"))
    forget_peak(large.daemon.pid)
    before = large.daemon.rss_bytes()
    answer = post(large, md5.hexdigest().upper())
    assert answer.status == 201, answer.text
    job = answer.json["id"]
    result = tenant.done(job)
    print(f"to take it in: {(peak_bytes(large.daemon.pid) - before) / 1e6:.1f} MB more")
    assert result["location"]["digest"] == f"sha256:{sha256.hexdigest()}"
    assert result["location"]["size_bytes"] == PAYLOAD_BYTES
    assert hashlib.sha256(tenant.image(job)).digest() == sha256.digest()
    growth = peak_bytes(large.daemon.pid) - before
    print(f"in all: {growth / 1e6:.1f} MB more")
    assert growth < GROWTH_MAX_BYTES


def test_large_payload_with_a_wrong_checksum(large: DispatchBox) -> None:
    """A wrong MD5 is told with both sums, and leaves no job, no blob and no spool file."""
    jobs, blobs = large.daemon.sqlite("select count(*) from job"), large.blobs()
    answer = post(large, "0" * 32)
    assert answer.status == 400
    assert (answer.json["code"], answer.json["details"]) == (2, "Error during md5 validation")
    assert answer.json["error"].startswith(f"MD5 hash sum is not valid passed: {'0' * 32}, calculated: ")
    assert large.daemon.sqlite("select count(*) from job") == jobs
    assert large.spooled() == []
    assert large.blobs() == blobs


def test_small_payload_with_a_wrong_checksum(large: DispatchBox) -> None:
    """So does a small one."""
    jobs, blobs = large.daemon.sqlite("select count(*) from job"), large.blobs()
    answer = large.tenant().send(b"small", md5="1" * 32)
    assert (answer.status, answer.json["code"]) == (400, 2)
    assert large.daemon.sqlite("select count(*) from job") == jobs
    assert (large.spooled(), large.blobs()) == ([], blobs)


def test_upload_that_breaks_off(large: DispatchBox) -> None:
    """A client that goes away in mid-payload leaves nothing either."""
    jobs, blobs = large.daemon.sqlite("select count(*) from job"), large.blobs()
    connection = http.client.HTTPConnection("127.0.0.1", large.daemon.port, timeout=REQUEST_TIMEOUT_S)
    connection.putrequest("POST", "/api/v1/job")
    connection.putheader("Authorization", f"Bearer {large.tenant().token}")
    connection.putheader("Content-Length", "10000000")
    connection.endheaders(b'{"encoding": "base64", "content": "' + b"QUJD" * 500_000)
    until(lambda: bool(large.spooled()), what="the payload to be spooled")
    connection.close()
    until(lambda: large.spooled() == [], what="the spool file to go")
    assert large.daemon.sqlite("select count(*) from job") == jobs
    assert large.blobs() == blobs
