"""Whatever comes over the wire, the answer is one of the API's own: never a 500, never a traceback."""

import asyncio
import json
import logging
import string
from typing import Any
from urllib.parse import quote

import pytest
from bare_app import BareApp, bare_app
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from signing import by_secret, token

PATHS = [
    "/api/v1/build",
    "/api/v1/{}/status",
    "/api/v1/{}/logs",
    "/api/v1/job",
    "/api/v1/job/{}",
    "/api/v1/job/{}/status",
    "/images/{}",
    "/run",
    "/status?id={}",
    "/api/distribute/image",
    "/api/distribute/image/{}",
    "/api/v2/jobs",
    "/api/v2/jobs?{}",
    "/api/v2/jobs?state={}",
    "/api/v2/jobs?label={}",
    "/api/v2/jobs?cursor={}",
    "/api/v2/jobs?image={}",
    "/api/v2/jobs?kind=build&submitter={}",
    "/api/v2/jobs?created_after={}",
    "/api/v2/jobs/retry",
    "/api/v2/jobs/{}/retry",
    "/api/v2/queue",
    "/api/v2/queue/pause",
    "/api/v2/queue/resume",
    "/api/v2/jobs/{}",
    "/api/v2/jobs/{}/log",
    "/api/v2/jobs/{}/cancel",
    "/{}",
]
WORDS = [
    *("image_name", "dockerfile", "TarFile", "tarUrl", "username", "password", "nocache", "kind", "build", "spec"),
    *("image", "tar_url", "context", "tags", "build_args", "target", "labels", "platform", "pull", "priority"),
    *("source", "targets", "endpoint", "ref", "auth", "basicauth", "header", "json", "url", "distribute", "verify_tls"),
    *("http://127.0.0.1:9/v2", "127.0.0.1:9", "https://[::1]:9", "sha256:" + "0" * 64, '{"a": "b"}'),
    *("encoding", "base64", "MD5", "content", "QUJD", "902fbdd2b1df0c4f70b4a5d23525e932", "dispatch", "run", "1"),
    *("not_before", "FROM scratch", "FROM a AS b\nRUN --mount=from=b x", "app", "localhost:5000/x", "http://[", "::1"),
    *("2030-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59", "\x00", "é", "\u2028", "true", "", "9" * 400, "-1"),
]
HEADERS = {
    "key": "Idempotency-Key",
    "origin": "Origin",
    "authorization": "Authorization",
    "expect": "Expect",
}
OK_STATUSES = {200, 201, 202, 400, 401, 403, 404, 405, 408, 409, 413, 417, 422}

words = st.sampled_from(WORDS) | st.text(max_size=20)
values: SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=4),
    max_leaves=8,
)
specs = st.fixed_dictionaries(
    {},
    optional={
        "image": words,
        "dockerfile": words,
        "tar_url": words,
        "tags": st.lists(words, max_size=2) | values,
        "build_args": st.dictionaries(words, words, max_size=2) | values,
        "labels": values,
        "platform": words,
        "target": words,
        "pull": words,
        "username": words,
        "password": words,
        "nocache": values,
    },
)
auths = st.fixed_dictionaries(
    {},
    optional={
        "url": words,
        "token_type": words,
        "header": st.dictionaries(words, words, max_size=2) | values,
        "json": values,
        "basicauth": st.fixed_dictionaries({"user": words, "password": words}) | values,
    },
)
# Where nothing listens, so that it is soon answered, and what names no host.
endpoints = st.sampled_from(
    [
        "http://127.0.0.1:9/v2",
        "127.0.0.1:9",
        "http://[::1]:9/",
        "http://u:p@127.0.0.1",
        "http://[",
        "\x00",
        "é",
        "",
        "/",
    ]
)
sources = st.fixed_dictionaries(
    {"endpoint": endpoints, "image": st.just("app") | words, "ref": st.just("1") | words},
    optional={"verify_tls": values, "auth": auths | values, "tags": values, "images": values},
)
targets = st.fixed_dictionaries(
    {"endpoint": endpoints},
    optional={"image": words, "ref": words, "overwrite": values, "verify_tls": values, "auth": auths | values},
)
distributions = st.fixed_dictionaries(
    {"source": sources | values, "targets": st.lists(targets, max_size=3) | values},
    optional={"platforms": values, "referrers": values, "dry_run": values},
)
submissions = st.fixed_dictionaries(
    {"kind": st.sampled_from(["build", "distribute"]) | words, "spec": specs | distributions},
    optional={"priority": values, "not_before": words | st.datetimes().map(str), "labels": values, "context": words},
)
builds = st.fixed_dictionaries(
    {"image_name": words},
    optional={"dockerfile": words, "TarFile": words, "tarUrl": words, "nocache": values, "username": values},
)
dispatches = st.fixed_dictionaries(
    {"encoding": st.just("base64") | words, "content": st.just("QUJD") | values},
    optional={"MD5": st.just("902fbdd2b1df0c4f70b4a5d23525e932") | values, "x": values},
)
documents = (submissions | builds | distributions | dispatches | values).map(lambda value: json.dumps(value).encode())
multiparts = st.lists(
    st.sampled_from([b"--b\r\n", b"--b--\r\n", b"\r\n", b'Content-Disposition: form-data; name="Json"\r\n\r\n'])
    | st.sampled_from([b'Content-Disposition: form-data; name="file"\r\n\r\n', b"FROM scratch\n"])
    | st.sampled_from([b'Content-Disposition: form-data; name="job"\r\n\r\n', b"Content-Length: 3\r\n", b"--b"])
    | st.sampled_from([b"Content-Type: multipart/mixed; boundary=c\r\n\r\n", b"Content-Transfer-Encoding: base64\r\n"])
    | documents
    | st.binary(max_size=40),
    max_size=10,
).map(b"".join)
bodies = st.binary(max_size=100) | documents | multiparts
content_types = st.sampled_from(
    [
        "",
        "application/json",
        "multipart/form-data; boundary=b",
        "multipart/mixed; boundary=b",
        "multipart/",
        "multipart",
    ]
) | st.text(string.printable.strip(), max_size=20)
# What HTTP allows in a header's value (RFC 9110 §5.5), bytes that are no text included.
header_bytes = st.binary(max_size=20).map(lambda raw: raw.translate(None, bytes([*range(32), 127])).strip())


@pytest.mark.parametrize("seed_method", ["GET", "POST"])
async def test_no_request_is_a_defect(
    seed_method: str, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """No method, path, header or body gives a 500 or an exception in the log."""
    loop = asyncio.get_running_loop()
    folder = tmp_path_factory.mktemp("fuzz")
    async with bare_app(folder, auth=by_secret(folder)) as app:
        # Hypothesis calls plain functions, so each example asks this loop from a thread.
        await asyncio.to_thread(_fuzz, app, loop, seed_method)
    assert not [record for record in caplog.records if record.exc_info and record.levelno >= logging.ERROR]


def _fuzz(app: BareApp, loop: asyncio.AbstractEventLoop, method: str) -> None:
    @settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(
        path=st.sampled_from(PATHS),
        name=words,
        content_type=content_types,
        key=st.none() | header_bytes,
        origin=st.none() | header_bytes,
        authorization=st.none() | st.just(f"Bearer {token()}".encode()) | header_bytes,
        expect=st.none() | st.just(b"100-continue") | header_bytes,
        body=bodies,
    )
    def example(path: str, name: str, content_type: str, body: bytes, **given_headers: bytes | None) -> None:
        headers = {"Content-Type": content_type.encode()}
        headers |= {HEADERS[key]: value for key, value in given_headers.items() if value is not None}
        request = _request(method, path.format(quote(name, safe="&=")), headers, body)
        status = asyncio.run_coroutine_threadsafe(_status(app.port, request), loop).result(20)
        assert status in OK_STATUSES, (status, request)

    example()


def _request(method: str, path: str, headers: dict[str, bytes], body: bytes) -> bytes:
    lines = {"Host": b"localhost", "Connection": b"close", "Content-Length": str(len(body)).encode()} | headers
    head = b"".join(name.encode() + b": " + value + b"\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n".encode() + head + b"\r\n" + body


async def _status(port: int, request: bytes) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        while (status := int((await reader.readline()).split()[1])) == 100:
            await reader.readuntil(b"\r\n")
        return status
    finally:
        writer.close()
