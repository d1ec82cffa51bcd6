"""What a docker-registry was asked, by its own access log."""

import re
import time
from typing import NamedTuple

from harness.registry import Registry

# Apache's combined format, which it writes besides its own: `… "GET /v2/ HTTP/1.1" 200 2 "" "agent"`.
ACCESS = re.compile(r'^\S+ - - \[[^]]*\] "(?P<method>[A-Z]+) (?P<path>\S+) HTTP/[0-9.]+" \d+ (?P<written>\d+) ', re.M)
# A request is logged when its answer was written, which may be a little after the client had it.
SETTLED_S = 0.3


class Request(NamedTuple):
    method: str
    path: str
    written_bytes: int


def requests(registry: Registry) -> list[Request]:
    """All requests so far, once no more are being logged."""
    text = registry.log_text()
    while True:
        time.sleep(SETTLED_S)
        before, text = text, registry.log_text()
        if text == before:
            return [Request(m["method"], m["path"], int(m["written"])) for m in ACCESS.finditer(text)]


def read_bytes(asked: list[Request]) -> int:
    """The bytes of manifests and blobs that were read. To a HEAD nothing is written, whatever its line says."""
    return sum(r.written_bytes for r in asked if r.method == "GET" and re.search(r"/(manifests|blobs)/", r.path))
