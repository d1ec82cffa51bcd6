"""HTTP Basic (RFC 7617), whose user names cannot hold a colon."""

import base64

from imagejobd.model.errors import invalid
from imagejobd.model.secrets import Credentials


def basic(credentials: Credentials) -> str:
    """The value of an `Authorization` header. Raises `Permanent(invalid)` for a user name with a colon."""
    if ":" in credentials.username:
        raise invalid("a registry user name cannot contain a colon")
    pair = f"{credentials.username}:{credentials.password.reveal()}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"
