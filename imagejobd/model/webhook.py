"""Who is told of the end of jobs: an address and the key of the signatures, checked where they come in.

The form of messages is that of the Standard Webhooks specification (standardwebhooks.com), for which most languages
have a library: `webhook-id`, `webhook-timestamp`, and in `webhook-signature` `v1,` with the base64 of an HMAC-SHA256
over `<id>.<timestamp>.<body>`. Nothing here does I/O.
"""

import base64
import binascii
import hashlib
import hmac

import msgspec
from yarl import URL

from imagejobd.model.errors import invalid
from imagejobd.model.secrets import Secret

URL_MAX_CHARS = 2048
# RFC 1035 §2.3.4.
LABEL_MAX_CHARS = 63
# RFC 2104 §3: shorter keys make the signature weaker than the hash.
SECRET_MIN_BYTES, SECRET_MAX_BYTES = 24, 1024
_SECRET_PREFIX = "whsec_"  # noqa: S105 - what secrets begin with


class Receiver(msgspec.Struct, frozen=True):
    """`secret` is the key, or `whsec_` and the key in base64."""

    url: str
    secret: Secret

    @classmethod
    def parse(cls, url: str, secret: str, *, url_name: str, secret_name: str) -> "Receiver":
        """Raises `Permanent(invalid)` that begins with the name of what is wrong, and shows neither."""
        try:
            parsed = URL(url) if len(url) <= URL_MAX_CHARS else URL()
            host = parsed.host or ""
            # What resolvers refuse before they ask anybody; addresses have no such labels.
            is_name = all(0 < len(label) <= LABEL_MAX_CHARS for label in host.removesuffix(".").split("."))
        except ValueError:
            parsed, is_name = URL(), False
        if parsed.scheme not in ("http", "https") or not is_name or not parsed.port:
            raise invalid(f"{url_name} is not an http(s) URL, such as https://ci.example/hooks/imagejobd")
        if parsed.user or parsed.password:
            raise invalid(f"{url_name} holds a user or password; the signature says who sends it")
        receiver = cls(url, Secret(secret))
        try:
            size = len(receiver.key)
        except (binascii.Error, ValueError):
            raise invalid(f"{secret_name}: what follows whsec_ is not base64") from None
        if not SECRET_MIN_BYTES <= size <= SECRET_MAX_BYTES:
            raise invalid(f"{secret_name} holds {size} bytes; {SECRET_MIN_BYTES} to {SECRET_MAX_BYTES} are needed")
        return receiver

    @property
    def key(self) -> bytes:
        """What is signed with."""
        secret = self.secret.reveal()
        if secret.startswith(_SECRET_PREFIX):
            return base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
        return secret.encode()

    @property
    def host(self) -> str:
        return URL(self.url).host or ""

    def signed_headers(self, message_id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
        """As the specification has them; `timestamp_s` is in epoch seconds."""
        text = f"{message_id}.{timestamp_s}.".encode() + body
        signature = base64.b64encode(hmac.digest(self.key, text, hashlib.sha256)).decode()
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp_s),
            "webhook-signature": f"v1,{signature}",
        }
