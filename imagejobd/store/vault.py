"""Registry passwords at rest: sealed per job with AES-256-GCM, under a key that is not in the database.

The key comes from systemd's credentials (`LoadCredential=imagejobd-key:…`) or from a file made at the first start.
Nothing here keeps an opened secret.
"""

import base64
import binascii
import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.secrets import Secret
from imagejobd.store.files import fsync_folder

KEY_BYTES = 32
NONCE_BYTES = 12
FINGERPRINT_HEX_DIGITS = 32
CREDENTIAL_NAME = "imagejobd-key"
KEY_FILE_NAME = "secrets.key"

_decode = msgspec.json.Decoder(dict[str, str]).decode


class Vault:
    """Seals and opens the secrets of one job; its UUID is the associated data, so no row can borrow another's."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise Permanent(ErrorCode.INVALID, f"the secrets key has {len(key)} bytes; it must have {KEY_BYTES}")
        self._cipher = AESGCM(key)
        self._fingerprint_key = hmac.digest(key, b"imagejobd fingerprint", hashlib.sha256)
        # Tells this key from another, and nothing else: there is no guessing 32 random bytes.
        self.key_fingerprint = hmac.digest(key, b"imagejobd key", hashlib.sha256).hex()[:FINGERPRINT_HEX_DIGITS]

    def __repr__(self) -> str:
        return "Vault()"

    @classmethod
    def from_environment(cls, state_dir: Path, environ: Mapping[str, str] = os.environ) -> "Vault":
        """With the key of `$CREDENTIALS_DIRECTORY`, else with that of `state_dir`, which is made where there is none.

        Raises `Permanent(invalid)` for a key of the wrong size or a key file that others may read.
        """
        credential = Path(environ.get("CREDENTIALS_DIRECTORY", "/nonexistent")) / CREDENTIAL_NAME
        if credential.exists():
            return cls(_parse_key(credential, credential.read_bytes()))
        return cls(_key_file(state_dir / KEY_FILE_NAME))

    def seal(self, uuid: str, values: Mapping[str, Secret]) -> bytes:
        """Nonce and ciphertext of all secrets of the job `uuid`."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        plain = msgspec.json.encode({name: value.reveal() for name, value in values.items()})
        return nonce + self._cipher.encrypt(nonce, plain, uuid.encode())

    def open(self, uuid: str, sealed: bytes) -> dict[str, Secret]:
        """The secrets that `seal` was given.

        Raises `Permanent(secrets_lost)` when they were sealed with another key, or for another job.
        """
        try:
            plain = self._cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], uuid.encode())
        except InvalidTag as error:
            raise Permanent(
                ErrorCode.SECRETS_LOST,
                "the job's registry credentials can't be decrypted: the secrets key has changed since; "
                "submit the job again",
            ) from error
        return {name: Secret(value) for name, value in _decode(plain).items()}

    def opens(self, uuid: str, sealed: bytes) -> bool:
        """Whether `open` would."""
        try:
            self.open(uuid, sealed)
        except Permanent:
            return False
        return True

    def fingerprint(self, text: str) -> str:
        """A name for `text` that only this key can make: `FINGERPRINT_HEX_DIGITS` of them."""
        return hmac.digest(self._fingerprint_key, text.encode(), hashlib.sha256).hex()[:FINGERPRINT_HEX_DIGITS]


def _parse_key(path: Path, data: bytes) -> bytes:
    """32 raw bytes, or the same in base64 as `openssl rand -base64 32` prints them."""
    if len(data) == KEY_BYTES:
        return data
    try:
        key = base64.b64decode(data.strip(), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != KEY_BYTES:
        raise Permanent(
            ErrorCode.INVALID,
            f"{path} holds no key of {KEY_BYTES} bytes (raw or base64); "
            f"make one with: openssl rand -base64 {KEY_BYTES}",
        )
    return key


def _key_file(path: Path) -> bytes:
    try:
        _make_key_file(path)
    except FileExistsError:
        _check_mode(path)
    return _parse_key(path, path.read_bytes())


def _make_key_file(path: Path) -> None:
    """Make it under its name only when it is whole: half a key, left by a crash, would refuse every later start."""
    if path.exists():
        raise FileExistsError(path)
    draft = path.with_suffix(f".{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)  # unlike a rename, never over another's key
    finally:
        draft.unlink()
    fsync_folder(path.parent)


def _check_mode(path: Path) -> None:
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise Permanent(
            ErrorCode.INVALID,
            f"{path} may be read by others (mode {mode:04o}): run chmod 600 on it, and change the passwords "
            "it protects if somebody may have read it",
        )
