"""Key files: what is read from them, what is refused and how it is named, and that nothing of them is ever shown."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from signing import (
    DOCUMENT_SECRET,
    ED25519,
    P256,
    P384,
    RSA,
    RSA_OF_ANOTHER,
    SECRET,
    by_public_keys,
    by_secret,
    jwk,
    jwks_file,
    part_of_bytes,
    private_pem,
    public_pem,
    secret_jwk,
    written,
)

from imagejobd.api.keys import FILE_MAX_BYTES, KEYS_MAX, Auth, load_keys
from imagejobd.model.errors import ErrorCode, Permanent


def refusal(auth: Auth) -> str:
    with pytest.raises(Permanent) as refused:
        load_keys(auth)
    assert refused.value.code is ErrorCode.INVALID
    return refused.value.message


def pem_of_other_sort(key: Any) -> bytes:
    pem: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


def test_each_key_is_pinned_to_its_sort(tmp_path: Path) -> None:
    """A key is good for the algorithms of its sort, as far as they are configured."""
    ring = load_keys(
        Auth(
            jwt_secret_file=written(tmp_path, "secret", SECRET),
            jwt_public_key_files=(written(tmp_path, "r", public_pem(RSA)), written(tmp_path, "e", public_pem(P256))),
            jwks_file=jwks_file(tmp_path, jwk(ED25519), jwk(RSA, alg="PS256"), secret_jwk(SECRET, alg="HS512")),
            algorithms=("HS256", "HS512", "RS256", "PS256", "ES256", "ES384", "EdDSA"),
        )
    )
    found = [key.algorithms for key in ring.keys]
    assert found == [("HS256", "HS512"), ("RS256", "PS256"), ("ES256",), ("EdDSA",), ("PS256",), ("HS512",)]


@pytest.mark.parametrize("name", ["none", "HS", "hs256", "RS255", "ES521", ""])
def test_unknown_algorithms(name: str) -> None:
    """`algorithms` has names that exist; none is not among them."""
    message = refusal(Auth(algorithms=("HS256", name)))
    assert message.startswith(f"auth.algorithms: {name!r}")
    assert "EdDSA" in message


@pytest.mark.parametrize("key", ["jwt_secret_file", "jwt_public_key_files", "jwks_file"])
def test_unreadable_files(tmp_path: Path, key: str) -> None:
    """A file that is absent, a folder, empty or far too large is named with its key."""
    large = written(tmp_path, "large", b"x" * (FILE_MAX_BYTES + 1))
    for file in (str(tmp_path / "absent"), str(tmp_path), large, written(tmp_path, "empty", b"\n"), "a\0b"):
        settings: dict[str, Any] = {key: (file,) if key == "jwt_public_key_files" else file}
        message = refusal(Auth(**settings))
        assert message.startswith(f"auth.{key}: {file}")


@pytest.mark.parametrize("key", ["jwt_secret_file", "jwt_public_key_files", "jwks_file"])
def test_files_that_are_none(tmp_path: Path, key: str) -> None:
    """A FIFO, which could be waited at for good, and a device are refused at once."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for file in (str(fifo), "/dev/zero"):
        settings: dict[str, Any] = {key: (file,) if key == "jwt_public_key_files" else file}
        assert refusal(Auth(**settings)) == f"auth.{key}: {file} is not a regular file"


def test_private_keys_are_refused(tmp_path: Path) -> None:
    """The daemon is not given keys that can sign, neither as PEM nor in a JWKS."""
    private = private_pem(RSA)
    for content in (private, public_pem(P256) + private, private.replace(b"PRIVATE KEY", b"ENCRYPTED PRIVATE KEY")):
        message = refusal(Auth(jwt_public_key_files=(written(tmp_path, "key.pem", content),)))
        assert "key.pem holds a private key" in message
    message = refusal(Auth(jwks_file=jwks_file(tmp_path, jwk(P256), jwk(ED25519, d=part_of_bytes(b"d" * 32)))))
    assert "key 2 holds a private key" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no key at all", "not a public key in PEM"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "not a public key in PEM"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "not a public key in PEM"),
        (public_pem(P256) + public_pem(P384), "more than one PEM block"),
        (pem_of_other_sort(x25519.X25519PrivateKey.generate()), "signs no tokens"),
        (pem_of_other_sort(dsa.generate_private_key(2048)), "signs no tokens"),
        (pem_of_other_sort(ec.generate_private_key(ec.SECP224R1())), "signs no tokens"),
        (pem_of_other_sort(rsa.generate_private_key(65537, 1024)), "1024 bits; at least 2048"),
        (public_pem(P384), "for ES384; auth.algorithms allows: HS256, RS256, ES256, EdDSA"),
    ],
)
def test_unusable_public_keys(tmp_path: Path, content: bytes, words: str) -> None:
    """What is no public key, of a sort that signs nothing, weak, or of no allowed algorithm is refused by its file."""
    file = written(tmp_path, "key.pem", content)
    message = refusal(Auth(jwt_public_key_files=(file,)))
    assert message.startswith(f"auth.jwt_public_key_files: {file} ")
    assert words in message


def test_a_key_file_is_no_secret(tmp_path: Path) -> None:
    """A PEM file or a JWK in the place of the secret is a mistake that would let its public half sign."""
    for content in (public_pem(RSA), private_pem(P256), json.dumps(jwk(RSA)).encode()):
        assert "a key of another sort" in refusal(by_secret(tmp_path, content))


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"nonsense", b'{"keys": 1}', b'{"keys": [1]}', b'{"keys":' + b"[" * 100_000, b"\xff\xfe"],
)
def test_what_is_no_jwks(tmp_path: Path, content: bytes) -> None:
    """A file of another shape is refused by name."""
    file = written(tmp_path, "keys.json", content)
    assert refusal(Auth(jwks_file=file)).startswith(f"auth.jwks_file: {file} is not a JWKS document")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ({}, "kty"),
        ({"kty": 1}, "kty"),
        ({"kty": "RSA", "kid": 5}, "kid"),
        ({"kty": "RSA"}, "do not make a key"),
        ({"kty": "RSA", "n": "AQ", "e": "AQAB"}, ""),
        ({"kty": "RSA", "n": 5, "e": []}, "do not make a key"),
        ({"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}, "do not make a key"),
        ({"kty": "EC", "crv": "P-256", "x": part_of_bytes(b"x" * 32), "y": part_of_bytes(b"y" * 32)}, "do not make"),
        ({"kty": "OKP", "crv": "X25519", "x": "AA"}, "do not make a key"),
        ({"kty": "oct", "k": ""}, "do not make a key"),
        ({"kty": "oct"}, "do not make a key"),
        (jwk(rsa.generate_private_key(65537, 1024)), "1024 bits"),
    ],
)
def test_broken_keys_in_a_jwks(tmp_path: Path, key: dict[str, Any], words: str) -> None:
    """A key that cannot be read is named by its number, without its members."""
    message = refusal(Auth(jwks_file=jwks_file(tmp_path, jwk(P256), key)))
    assert "key 2" in message
    assert words in message


def test_keys_for_other_ends_are_passed_over(tmp_path: Path) -> None:
    """Providers list keys for encryption and for algorithms that are not configured; they are not keys for tokens."""
    others = [
        jwk(RSA_OF_ANOTHER, use="enc"),
        jwk(RSA_OF_ANOTHER, alg="RSA-OAEP"),
        jwk(RSA_OF_ANOTHER, alg="RS512"),
        jwk(RSA_OF_ANOTHER, key_ops=["encrypt"]),
        jwk(P384),
        {"kty": "AKP", "alg": "ML-DSA-44"},
    ]
    ring = load_keys(Auth(jwks_file=jwks_file(tmp_path, *others, jwk(RSA, use="sig", key_ops=["verify"], kid="a"))))
    assert [(key.id, key.algorithms) for key in ring.keys] == [("a", ("RS256",))]
    assert "has no key that verifies" in refusal(Auth(jwks_file=jwks_file(tmp_path, *others)))
    assert "has no key that verifies" in refusal(Auth(jwks_file=jwks_file(tmp_path)))


def test_there_may_not_be_any_number_of_keys(tmp_path: Path) -> None:
    """A token without a known `kid` is tried with every key, so they are few."""
    keys = [secret_jwk(SECRET, kid=str(number)) for number in range(KEYS_MAX + 1)]
    assert len(load_keys(Auth(jwks_file=jwks_file(tmp_path, *keys[1:]))).keys) == KEYS_MAX
    assert f"{KEYS_MAX + 1} keys" in refusal(Auth(jwks_file=jwks_file(tmp_path, *keys)))


def test_tokens_cannot_be_required_without_a_key() -> None:
    """`required = true` without a key would shut everybody out."""
    message = refusal(Auth(required=True))
    for name in ("auth.required", "jwt_secret_file", "jwt_public_key_files", "jwks_file"):
        assert name in message


def test_short_secrets_are_taken_with_a_warning(tmp_path: Path) -> None:
    """The secret of the document is short: it works, and the operator is told, without being shown it."""
    [weakness] = load_keys(by_secret(tmp_path, DOCUMENT_SECRET)).weaknesses
    assert "19 bytes" in weakness
    assert DOCUMENT_SECRET.decode() not in weakness
    assert not load_keys(by_secret(tmp_path)).weaknesses


def test_keys_do_not_show_themselves(tmp_path: Path) -> None:
    """Neither a key nor a ring of them shows a secret."""
    ring = load_keys(by_secret(tmp_path))
    assert SECRET.decode() not in f"{ring!r} {ring.keys!r} {ring.keys[0]} {vars(ring)}"
    assert load_keys(by_public_keys(tmp_path, RSA)).keys[0].id is None
