"""What a registry means by an answer that is no success (distribution spec, "Error Codes").

The codes of the error body count before the status: docker-registry says MANIFEST_BLOB_UNKNOWN inside a 500, too.
"""

import re
from collections.abc import Iterable

import msgspec

from imagejobd.model.errors import ErrorCode, Fault, NotFound, Permanent, Temporary
from imagejobd.registry.connection import Connection
from imagejobd.registry.http.transport import Answer

# An image may miss as many blobs as manifests may list; what is more is not of the spec's form.
ERRORS_MAX = 20_000

_MISSING = frozenset({"MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_UNKNOWN"})
_DIGEST = re.compile(rb"sha256:[a-f0-9]{64}\b|sha512:[a-f0-9]{128}\b")


class BlobUnknown(Temporary):
    """The registry misses what a manifest refers to; `digests` are those that it names, maybe none.

    It happens although HEAD has just said 200: registries cache, and collect garbage. Pushing the content helps.
    """

    def __init__(self, message: str, digests: Iterable[str] = ()) -> None:
        super().__init__(ErrorCode.COPY_FAILED, message)
        self.digests = tuple(digests)


class _Error(msgspec.Struct):
    code: str = ""
    message: str | None = None
    detail: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def is_of_missing_content(self) -> bool:
        return self.code.upper() in _MISSING

    @property
    def digests(self) -> list[str]:
        """What it names: docker-registry does so in `detail` (`{"digest": …}`), ECR in its message."""
        found = _DIGEST.findall(bytes(self.detail)) or _DIGEST.findall((self.message or "").encode(errors="replace"))
        return [digest.decode() for digest in found]


class _Errors(msgspec.Struct):
    errors: list[_Error] = []


def codes_of(body: bytes) -> frozenset[str]:
    """The error codes in a body of the spec's form; none in any other."""
    return frozenset(error.code.upper() for error in _errors_in(body))


def is_success(answer: Answer) -> bool:
    return 200 <= answer.status < 300


def push_refused(connection: Connection, answer: Answer, what: str) -> Fault:
    """The fault for a write that did not succeed, after those that only some writes know."""
    fault = connection.refusal(answer, what=what)
    codes = codes_of(answer.body)
    if answer.status in (401, 403):
        return fault
    if answer.status == 405:
        return Permanent(
            ErrorCode.DENIED,
            f"{fault.message}; it is read-only, a mirror or in maintenance, or does not know this type of content: "
            "push to another one",
        )
    if answer.status == 413:
        return Permanent(ErrorCode.TOO_LARGE, fault.message)
    if "NAME_UNKNOWN" in codes or answer.status == 404:
        return NotFound(f"{fault.message}; where repositories are not made by pushing, create it first")
    if answer.status in (400, 409, 412, 422):
        return Permanent(ErrorCode.COPY_FAILED, fault.message)
    return fault


def blob_unknown(connection: Connection, answer: Answer, what: str, *, own_digest: str) -> BlobUnknown | None:
    """The fault where the answer to a manifest says that its content is missing; None where it says otherwise."""
    missing = [error for error in _errors_in(answer.body) if error.is_of_missing_content]
    if not missing:
        return None
    digests = dict.fromkeys(digest for error in missing for digest in error.digests)
    digests.pop(own_digest, None)
    told = connection.refusal(answer, what=what).message
    return BlobUnknown(f"{told}; it misses content that the manifest refers to", digests)


def _errors_in(body: bytes) -> list[_Error]:
    if body.count(b"{") > ERRORS_MAX:
        return []
    try:
        return msgspec.json.decode(body, type=_Errors).errors
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []
