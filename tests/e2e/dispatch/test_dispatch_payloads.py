"""Every sort of payload end to end: told by its bytes, built or checked or kept, and served."""

import bz2
import gzip
import hashlib
import io
import lzma
import struct
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.base_image import BUSYBOX
from harness.bodies import dockerfile, tar
from harness.dispatch_box import DispatchBox, Tenant, context, inspected, oci_layout, printed, saved

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstd.compress,
    "gzip in two": lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:]),
}


def test_dockerfile(box: DispatchBox, tenant: Tenant, tmp_path: Path) -> None:
    """A Dockerfile is built; what is served loads into an engine, runs, and is what skopeo takes for an image."""
    job = tenant.dispatch(dockerfile("RUN echo made for a tenant > /greeting", 'CMD ["cat", "/greeting"]'))
    result = tenant.done(job)
    assert result["what"] == "dockerfile"
    image = tenant.image(job)
    assert result["location"]["digest"] == f"sha256:{hashlib.sha256(image).hexdigest()}"
    assert result["location"]["size_bytes"] == len(image)
    assert tenant.shown(job) == {
        "id": job,
        "tenant_id": 1,
        "client_id": 1,
        "payload_location": f"/images/{job}",
        "status": "SUCCESS",
    }
    assert printed(box.engine, image) == "made for a tenant"
    assert inspected(image, tmp_path)["Os"] == "linux"
    box.check_gone(tenant.job(job)["id"])


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_context(box: DispatchBox, tenant: Tenant, compression: str) -> None:
    """A tar with a Dockerfile at its top is built as the context, whatever it is compressed with."""
    job = tenant.dispatch(COMPRESSIONS[compression](context(f"from {compression}")))
    assert tenant.done(job)["what"] == "context"
    assert printed(box.engine, tenant.image(job)) == f"from {compression}"


def test_lower_case_dockerfile_below_a_dot(box: DispatchBox, tenant: Tenant) -> None:
    """`tar c .` writes `./Dockerfile`; that is the top level too."""
    payload = tar({"./Dockerfile": dockerfile('CMD ["echo", "dot"]'), "./manifest.json": b"[]"})
    job = tenant.dispatch(payload)
    assert tenant.done(job)["what"] == "context"
    assert printed(box.engine, tenant.image(job)) == "dot"


@pytest.mark.parametrize("sort", ["docker save", "docker save, gzip", "OCI layout", "two images"])
def test_image_archive(box: DispatchBox, tenant: Tenant, sort: str, tmp_path: Path) -> None:
    """An image archive is checked and comes back byte for byte; an engine or skopeo reads it as before."""
    payload = saved(box.engine, tmp_path)
    if sort == "OCI layout":
        payload = oci_layout(payload, tmp_path)
    elif sort == "docker save, gzip":
        payload = gzip.compress(payload, 1)
    elif sort == "two images":
        box.engine.docker("tag", BUSYBOX, "imagejobd-test/second:1")
        box.engine.docker("save", "--output", f"{tmp_path}/two.tar", BUSYBOX, "imagejobd-test/second:1")
        box.engine.docker("rmi", "imagejobd-test/second:1")
        payload = (tmp_path / "two.tar").read_bytes()
    job = tenant.dispatch(payload)
    assert tenant.done(job)["what"] == "image_archive"
    assert tenant.image(job) == payload
    if sort == "docker save":
        assert inspected(tenant.image(job), tmp_path)["Layers"]


def test_damaged_image_archives(tenant: Tenant, box: DispatchBox, tmp_path: Path) -> None:
    """An archive whose content is not what its digests say is refused with the name of what is wrong."""
    layout = oci_layout(saved(box.engine, tmp_path), tmp_path)
    for payload in (altered(layout, "blobs/sha256/"), without(layout, "blobs/sha256/")):
        error = tenant.refused(tenant.dispatch(payload))
        print(error)
        assert error["code"] == "invalid"
        assert "sha256" in error["message"]


PNG = b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(data)) + sort + data + struct.pack(">I", zlib.crc32(sort + data))
    for sort, data in (
        (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0\0")),
        (b"IEND", b""),
    )
)


@pytest.mark.parametrize(
    "payload",
    [
        PNG,
        b"\n",
        "just a text, größer\n".encode(),
        b"From: somebody\nTo: nobody\n\nfrom here on\n",
        bytes(2000),
        tar({"notes/Dockerfile": b"FROM scratch\n", "a": b"b"}),
        gzip.compress(b"no tar"),
        b"\x1f\x8b\x08 cut",
        b"from typing import Any\n",
        b'{"FROM": "json"}',
        "\ufeffhello".encode(),
        b"x" * 70_000,
    ],
    ids=["picture", "blank", "text", "mail", "zeros", "tar", "gzip", "no gzip", "python", "json", "bom", "large"],
)
def test_anything_else_is_kept(tenant: Tenant, payload: bytes) -> None:
    """What is neither a Dockerfile nor an image is kept as it is, and nothing of it is run or named as a page."""
    job = tenant.dispatch(payload)
    result = tenant.done(job)
    assert result["what"] == "file"
    assert tenant.image(job) == payload
    served = tenant.call("GET", f"/images/{job}").headers
    assert "html" not in served["content-type"]
    assert served.get("x-content-type-options", "nosniff") == "nosniff"


def test_no_bytes_at_all(tenant: Tenant) -> None:
    """An empty payload is a file of no bytes."""
    job = tenant.dispatch(b"")
    assert tenant.done(job)["what"] == "file"
    assert tenant.image(job) == b""


@pytest.mark.parametrize(
    ("payload", "code", "says"),
    [
        (dockerfile("RUNN true"), "invalid", "line 2"),
        (dockerfile("COPY --from=nowhere"), "invalid", "line 2"),
        ("# syntax=docker.io/evil/frontend\n" + dockerfile(), "policy", "syntax"),
        (dockerfile("RUN --mount=type=secret,id=x true"), "policy", "line 2"),
        (dockerfile("RUN exit 3"), "build_failed", "3"),
        (tar({"Dockerfile": dockerfile("COPY ../../etc/passwd /", "RUNN x")}), "invalid", "line 3"),
        (tar({"Dockerfile": b"\xff\xfeFROM x"}), "invalid", "Dockerfile"),
        (context("cut")[:1100], "invalid", "tar"),
        (gzip.compress(context("cut gzip"))[:-30], "invalid", "gzip"),
        (context("damaged")[:512] + b"\xff" * 512 + context("damaged")[1024:], "invalid", ""),
        (tar({"../escape": b"x", "Dockerfile": dockerfile()}), "invalid", "escape"),
    ],
    ids=[
        "syntax error",
        "copy without",
        "frontend",
        "secret mount",
        "step fails",
        "syntax error in context",
        "no UTF-8",
        "cut tar",
        "cut gzip",
        "damaged tar",
        "escape",
    ],
)
def test_payload_that_cannot_be_built(
    tenant: Tenant, box: DispatchBox, payload: bytes | str, code: str, says: str
) -> None:
    """The job fails once, its error says what and where, and the engine has nothing of it."""
    job = tenant.dispatch(payload)
    error = tenant.refused(job)
    print(error)
    assert error["code"] == code, error
    assert says in error["message"], error
    assert tenant.job(job)["attempt"] == 1
    box.check_gone(tenant.job(job)["id"])


def altered(archive: bytes, prefix: str) -> bytes:
    """The tar with one bit turned in its largest member below `prefix`."""
    return _mapped(archive, prefix, lambda data: bytes([data[0] ^ 1]) + data[1:])


def without(archive: bytes, prefix: str) -> bytes:
    """The tar without its largest member below `prefix`."""
    return _mapped(archive, prefix, lambda data: None)


def _mapped(archive: bytes, prefix: str, change: Callable[[bytes], bytes | None]) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive)) as reader:
        files = {m.name: _content(reader, m) for m in reader.getmembers() if m.isreg()}
    largest = max((name for name in files if name.startswith(prefix)), key=lambda name: len(files[name]))
    changed = change(files.pop(largest))
    return tar(files | ({largest: changed} if changed is not None else {}))


def _content(reader: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = reader.extractfile(member)
    return file.read() if file else b""
