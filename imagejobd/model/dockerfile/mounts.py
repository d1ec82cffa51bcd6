"""`RUN --mount=`: the comma-separated keys that say what is mounted, and from which image or stage."""

import csv
import io

import msgspec

from imagejobd.model.dockerfile.flags import BadFlag

TYPES = frozenset({"bind", "cache", "secret", "ssh", "tmpfs"})

_FLAG_KEYS = frozenset({"readonly", "readwrite", "required", "ro", "rw"})
_VALUE_KEYS = frozenset(
    {
        "destination",
        "dst",
        "env",
        "from",
        "gid",
        "id",
        "mode",
        "sharing",
        "size",
        "source",
        "src",
        "target",
        "type",
        "uid",
    }
)


class Mount(msgspec.Struct, frozen=True):
    """`type` is one of `TYPES`; `origin` is the stage or image of `from=`, "" for none; `fields` are all the others
    as they are written, with their keys in lower case."""

    type: str
    origin: str
    fields: tuple[str, ...] = ()

    def written(self) -> str:
        """What follows `--mount=`."""
        fields = (*self.fields, f"from={self.origin}") if self.origin else self.fields
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow(fields)
        return line.getvalue()


def parse_mount(value: str) -> Mount:
    """Parse what follows `--mount=`; of a key that is repeated the last counts. Raises `BadFlag`."""
    keys: dict[str, str] = {}
    fields: list[str] = []
    for field in _fields(value):
        key, equals, content = field.partition("=")
        key = key.lower()
        if key not in _VALUE_KEYS | _FLAG_KEYS:
            raise BadFlag(f"--mount: key {key[:64]!r} is not known")
        if not equals and key not in _FLAG_KEYS:
            raise BadFlag(f"--mount: key {key} needs a value: {key}=…")
        keys[key] = content
        if key != "from":
            fields.append(f"{key}{equals}{content}")
    # Engines expand variables and remove quotes here, so any other text could become any type.
    kind = keys.get("type", "bind").lower()
    if kind not in TYPES:
        raise BadFlag(f"--mount: type {kind[:64]!r} is not one of {', '.join(sorted(TYPES))}")
    return Mount(kind, keys.get("from", ""), tuple(fields))


def _fields(value: str) -> list[str]:
    if '"' not in value:
        return value.split(",")
    try:
        return next(csv.reader([value], strict=True), [])
    except csv.Error as error:
        raise BadFlag(f"--mount: {error}") from None
