"""The one vocabulary of errors.

Every failure that a user can see is a `Fault` with a machine-readable code and a message that says what went wrong,
where, and what to do next. Adapters translate their library's errors into it once; each API owns one table from codes
to its wire. Whether work is tried again is a type, not a guess::

    Fault
    ├── Temporary   may succeed later: network, 5xx, 429, engine restarting
    └── Permanent   will not: their Dockerfile fails, denied, not found, bad input
        ├── NotFound      what was asked for is not there
        ├── ClaimLost     the job is no longer ours to change
        └── StoreFailed   the database takes nothing more until a restart
"""

import copy
import datetime as dt
import email.utils
from enum import StrEnum
from typing import Self

RETRY_AFTER_MAX_S = 3600.0
# The Docker Engine as a `Temporary.peer`: no host has this name, because it has a space.
ENGINE = "the Docker Engine"


class ErrorCode(StrEnum):
    """What kind of failure it was. Stored with the job and part of every API: never renamed."""

    INVALID = "invalid"
    UNAUTHENTICATED = "unauthenticated"
    DENIED = "denied"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    TOO_LARGE = "too_large"
    POLICY = "policy"
    EGRESS = "egress"
    QUEUE_FULL = "queue_full"
    DRAINING = "draining"
    STORAGE_FULL = "storage_full"
    FETCH_FAILED = "fetch_failed"
    BUILD_FAILED = "build_failed"
    PUSH_FAILED = "push_failed"
    COPY_FAILED = "copy_failed"
    ENGINE_UNAVAILABLE = "engine_unavailable"
    REGISTRY_UNAVAILABLE = "registry_unavailable"
    RUN_FAILED = "run_failed"
    OUT_OF_MEMORY = "out_of_memory"
    RESULT_MISSING = "result_missing"
    RESULT_INVALID = "result_invalid"
    TIMEOUT = "timeout"
    QUARANTINED = "quarantined"
    SECRETS_LOST = "secrets_lost"
    INTERNAL = "internal"


class Fault(Exception):
    """A failure that a user is shown. `message` carries no secret."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.code.value!r}, {self.message!r})"

    def __copy__(self) -> Self:
        """The same failure for another task: an object that is raised in several grows a traceback of all of them."""
        twin = type(self).__new__(type(self), *self.args)
        twin.__dict__.update(self.__dict__)
        twin.__cause__ = self.__cause__
        return twin

    def with_message(self, message: str) -> Self:
        """The same failure in other words."""
        twin = copy.copy(self)
        twin.message, twin.args = message, (message,)
        return twin


class Temporary(Fault):
    """Trying again may help. `retry_after_s` is the peer's own wish, where it named one.

    `peer` is who did not answer at all: the `host[:port]` of a registry or a server, or `ENGINE`. It is None for a peer
    that answered, whatever it said.
    """

    def __init__(
        self, code: ErrorCode, message: str, *, retry_after_s: float | None = None, peer: str | None = None
    ) -> None:
        super().__init__(code, message)
        self.retry_after_s = retry_after_s
        self.peer = peer


class Permanent(Fault):
    """Trying the same again cannot help."""


class NotFound(Permanent):
    """What was asked for is not there."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.NOT_FOUND, message)


class ClaimLost(Permanent):
    """The claim token no longer holds the job: it was rescued, ended or taken over."""

    def __init__(self) -> None:
        super().__init__(ErrorCode.CONFLICT, "the claim on this job is no longer valid")


class StoreFailed(Permanent):
    """The database can't be trusted any more, or is gone: the daemon stops, and a restart recovers from the file."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            ErrorCode.INTERNAL, f"the job database has failed and takes no more work until a restart: {reason}"
        )
        self.reason = reason


def invalid(message: str) -> Permanent:
    """The fault for input that the caller has to change."""
    return Permanent(ErrorCode.INVALID, message)


def parse_retry_after(value: str | None, now: dt.datetime) -> float | None:
    """The seconds that a `Retry-After` header (RFC 9110 §10.2.3) asks for, be it seconds or a date, bounded; None
    without one that can be read."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        wait_s = float(text[:10])
    else:
        try:
            date = email.utils.parsedate_to_datetime(text)
        except (ValueError, OverflowError):
            return None
        # The standard library calls a date in "-0000" naive.
        wait_s = ((date if date.tzinfo else date.replace(tzinfo=dt.UTC)) - now).total_seconds()
    return min(max(wait_s, 0.0), RETRY_AFTER_MAX_S)
