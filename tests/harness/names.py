"""Names of the tests' own, as a process of ours has them looked up; all others stay as they are."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.daemon import SOURCE_ROOT

# Python imports it before anything else.
_SITE = """
import json, os, socket
with open(os.path.join(os.path.dirname(__file__), "names.json")) as file:
    NAMES = json.load(file)
look_up = socket.getaddrinfo
def getaddrinfo(host, port, *args, **kwargs):
    if host not in NAMES:
        return look_up(host, port, *args, **kwargs)
    return [found for address in NAMES[host] for found in look_up(address, port, *args, **kwargs)]
socket.getaddrinfo = getaddrinfo
"""


def resolving(names: Mapping[str, Sequence[str]], folder: Path) -> dict[str, str]:
    """The environment of a Python process to which each name means these addresses; it reads files of `folder`."""
    (folder / "sitecustomize.py").write_text(_SITE)
    (folder / "names.json").write_text(json.dumps(names))
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(SOURCE_ROOT)])}
