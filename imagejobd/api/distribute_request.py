"""What `POST /api/distribute/image` is given: the document's fields and no others, and its words for what is wrong.

The original's errors were what its schema library (marshmallow) printed: Python dictionaries that lead to the field.
Clients have learnt them, so they are written the same way here. What the fields may hold is for the kind to check.
"""

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from imagejobd.kinds.distribute.endpoint import parse_endpoint
from imagejobd.kinds.distribute.fields import FieldFault, Problem, convert, given, items, wrong
from imagejobd.kinds.distribute.spec import TARGETS_MAX
from imagejobd.model.errors import Permanent, invalid
from imagejobd.model.job import Json

REQUEST_MAX_BYTES = 1024 * 1024
REQUEST_HINT = "it holds only endpoints and logins"
WORDS_MAX_CHARS = 1000

_decode = msgspec.json.Decoder().decode
# `targets[2]` and `auth` of `source.auth.url`.
_STEP = re.compile(r"([^.\[\]]+)(?:\[([0-9]{1,6})\])?", re.DOTALL)


class _Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    source: Any
    targets: Any


class _Source(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    endpoint: str
    image: str
    ref: str
    verify_tls: bool | None = None
    auth: Any = None


class _Target(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    endpoint: str
    image: str | None = None
    ref: str | None = None
    overwrite: bool = False
    verify_tls: bool | None = None
    auth: Any = None


def parse_request(body: bytes | bytearray, configured: frozenset[str]) -> Json:
    """The body as the distribute kind's spec. `configured` see `configured_hosts`.

    Raises `FieldFault` for the first field in the document's order that is missing, unknown or of another type, else
    `Permanent(invalid)`.
    """
    request = convert(given(_decoded(body), ""), _Request, "")
    source = convert(given(request.source, "source"), _Source, "source")
    targets = items(request.targets, "targets", most=TARGETS_MAX)
    if not targets:
        raise wrong("targets", "Shorter than minimum length 1.")
    places = [(target, f"targets[{place}]") for place, target in enumerate(targets)]
    return {
        "source": _spec(source, "source", configured),
        "targets": [_spec(convert(given(target, at), _Target, at), at, configured) for target, at in places],
    }


def configured_hosts(names: Iterable[str]) -> frozenset[str]:
    """The hosts that configuration names, in all ways that an endpoint can mean them: a scheme's port may be said.

    Raises `FieldFault` for what is no host."""
    hosts: set[str] = set()
    for name in names:
        endpoint = parse_endpoint(name, "registry")
        has_port = endpoint.key == endpoint.host
        hosts |= {endpoint.host} if has_port else {endpoint.host, f"{endpoint.host}:443", f"{endpoint.host}:80"}
    return frozenset(hosts)


def refusal_words(fault: Permanent) -> str:
    """What the original printed for such a fault; it never quotes a value."""
    if not isinstance(fault, FieldFault):
        return fault.message
    if fault.problem is Problem.MISSING:
        return f"Missing field: {fault.name!r}"
    why: Any = ["Unknown field." if fault.problem is Problem.UNKNOWN else fault.why]
    for name, place in reversed(_STEP.findall(fault.field) or [("_schema", "")]):
        why = {name: {int(place): why} if place else why}
    return str(why)[:WORDS_MAX_CHARS]


def _decoded(body: bytes | bytearray) -> Any:
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"the request body is not valid JSON: {error}") from None


def _spec(registry: _Source | _Target, path: str, configured: frozenset[str]) -> Json:
    """The fields as the kind has them. A request's silence is the original's `verify_tls=false`, but never weakens
    what the operator has configured: a login or authority that is set up for a host goes with verified TLS."""
    spec: Json = msgspec.structs.asdict(registry)
    endpoint = parse_endpoint(registry.endpoint, f"{path}.endpoint")
    if registry.verify_tls is None and not configured & {endpoint.host, endpoint.key}:
        spec["verify_tls"] = False
    return {name: value for name, value in spec.items() if value is not None}
