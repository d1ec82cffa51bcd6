"""Minting tokens for tests and scripts, with the secret that the daemon checks them by or with a private key.

In production an identity provider mints them, and the daemon needs no key that can.
"""

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from imagejobd.api.keys import PrivateKey, allowed_algorithms, other_sort, read_key_file, read_secret
from imagejobd.api.settings import Auth
from imagejobd.model.errors import invalid
from imagejobd.model.job import Json


def mint(settings: Auth, claims: Json, *, private_key_file: str | None, key_id: str | None) -> str:
    """A token with `claims`, signed by the first algorithm of its key's sort that `auth.algorithms` allows.

    Raises `Permanent(invalid)` that names the file which cannot be used.
    """
    key: PrivateKey | bytes
    if private_key_file is not None:
        where = f"--private-key: {private_key_file}"
        key = _private_key(private_key_file, where)
    elif settings.jwt_secret_file is not None:
        where = f"auth.jwt_secret_file: {settings.jwt_secret_file}"
        key = read_secret(settings.jwt_secret_file)
    else:
        raise invalid("no key to sign with: configure auth.jwt_secret_file, or name a --private-key")
    algorithms = allowed_algorithms(key, settings.algorithms, where)
    return jwt.encode(claims, key, algorithm=algorithms[0], headers={"kid": key_id} if key_id else None)


def _private_key(file: str, where: str) -> PrivateKey:
    content = read_key_file(file, where)
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError:
        raise invalid(f"{where} is encrypted with a passphrase, which is not taken") from None
    except (ValueError, UnsupportedAlgorithm):
        raise invalid(f"{where} is not a private key in PEM") from None
    if not isinstance(key, PrivateKey):
        raise other_sort(where)
    return key
