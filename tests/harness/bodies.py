"""What requests for jobs are made of: Dockerfiles, contexts, and the forms that the APIs take them in."""

import base64
import hashlib
import io
import tarfile
from collections.abc import Mapping

from harness.base_image import BUSYBOX

BOUNDARY = "a-boundary-of-our-own"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"


def dockerfile(*lines: str, base: str = BUSYBOX) -> str:
    """A Dockerfile on the base image."""
    return "\n".join([f"FROM {base}", *lines, ""])


def tar(files: Mapping[str, bytes | str], *, packed: bool = False) -> bytes:
    """A tar of regular files, gzipped where `packed`."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz" if packed else "w") as writer:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            writer.addfile(member, io.BytesIO(data))
    return archive.getvalue()


def multipart(parts: Mapping[str, bytes | str]) -> bytes:
    """The parts in their order, as files; its Content-Type is `MULTIPART`."""
    body = b""
    for name, content in parts.items():
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n\r\n'
        body += head.encode() + (content.encode() if isinstance(content, str) else content) + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


def envelope(payload: bytes | str, *, md5: str | None = None) -> dict[str, str]:
    """The dispatcher's JSON around a payload, with the right MD5 unless another one is given."""
    data = payload.encode() if isinstance(payload, str) else payload
    content = base64.b64encode(data).decode()
    return {"encoding": "base64", "MD5": md5 or hashlib.md5(data).hexdigest(), "content": content}
