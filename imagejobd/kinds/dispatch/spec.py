"""What is dispatched, as it is stored: a payload by its digest, and its bytes themselves where they are few."""

import msgspec

from imagejobd.model.errors import invalid
from imagejobd.model.job import Json
from imagejobd.model.work import Accepted, Upload


class DispatchSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A payload of `size_bytes`. `payload` is its digest (`sha256:…`), which names a file of the content store unless
    `content` (base64 in JSON) holds the bytes; see `receiving.payload_file`.

    `md5` is the sender's own checksum, in lower case, where one came along; it was checked as the payload arrived.
    """

    payload: str
    size_bytes: int
    md5: str | None = None
    content: bytes | None = None


def parse(spec: Json, upload: Upload | None = None) -> Accepted:
    """All that a dispatched job is told is its payload. Raises `Permanent(invalid)` for anything else, and for none."""
    if unknown := [name for name, value in spec.items() if value is not None]:
        raise invalid(f"spec.{unknown[0][:80]}: a dispatched job takes no fields, only a payload")
    if upload is None:
        raise invalid("the payload is missing; send it as the context of the request")
    return Accepted(spec=upload.fields, blobs=upload.blobs)
