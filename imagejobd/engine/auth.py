"""Registry credentials in the forms that the engine takes them: base64url JSON in a header.

A header that the engine cannot decode is no error to it: it goes on anonymously. So one is always sent, well formed.
"""

import base64

import msgspec

from imagejobd.model.reference import HUB_HOST
from imagejobd.model.secret import Credentials

# The name under which the engine, for historical reasons, looks for the Hub's credentials.
_HUB_SERVER = "https://index.docker.io/v1/"


def registry_auth(host: str, credentials: Credentials | None) -> dict[str, str]:
    """`X-Registry-Auth` for one pull or push; without credentials it says anonymous."""
    return {"X-Registry-Auth": _encoded(_entry(host, credentials) if credentials else {})}


def _entry(host: str, credentials: Credentials) -> dict[str, str]:
    return {
        "username": credentials.username,
        "password": credentials.password.reveal(),
        "serveraddress": _server(host),
    }


def _server(host: str) -> str:
    return _HUB_SERVER if host == HUB_HOST else host


def _encoded(value: object) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(value)).decode()
