"""Which signatures are taken, and which tokens are refused for theirs or for their form, in how few words."""

import json
from pathlib import Path
from typing import Any

import pytest
from signing import (
    CLAIMS,
    DOCUMENT_SECRET,
    DOCUMENT_TOKEN,
    ED25519,
    P256,
    RSA,
    RSA_OF_ANOTHER,
    SECRET,
    SIGNERS,
    PrivateKey,
    by_public_keys,
    by_secret,
    forged,
    jwk,
    jwks_file,
    part,
    part_of_bytes,
    public_pem,
    secret_jwk,
    signed,
    token,
    written,
)
from token_checks import MALFORMED, NOT_ACCEPTED, caller, refusal

from imagejobd.api.auth import TOKEN_MAX_CHARS
from imagejobd.api.keys import ALGORITHMS, Auth

# The daemon says so in its own log; see test_auth_keys.py.
pytestmark = pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")


@pytest.fixture
def auth(tmp_path: Path) -> Auth:
    return by_secret(tmp_path)


def test_the_token_of_the_document(tmp_path: Path) -> None:
    """The dispatcher's document shows a token and its secret: both work as they are shown."""
    found = caller(by_secret(tmp_path, DOCUMENT_SECRET + b"\n"), DOCUMENT_TOKEN)
    assert (found.tenant, found.client, found.is_anonymous, found.is_admin) == ("1", "1", False, False)
    assert found.submitter == {
        "sub": "1234567890",
        "name": "John Doe",
        "azp": "1",
        "email": "customer@mail.com",
    }


@pytest.mark.parametrize(("algorithm", "key"), SIGNERS, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("source", ["pem", "jwks"])
def test_every_algorithm(tmp_path: Path, algorithm: str, key: PrivateKey, source: str) -> None:
    """A token signed by any algorithm is taken with the public key from a PEM file or a JWKS, if it is configured."""
    if source == "pem":
        auth = by_public_keys(tmp_path, key, algorithms=ALGORITHMS)
    else:
        auth = Auth(jwks_file=jwks_file(tmp_path, jwk(key)), algorithms=ALGORITHMS)
    assert caller(auth, token(key, algorithm)).tenant == "1"
    assert refusal(auth, token(SECRET)) == NOT_ACCEPTED


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
def test_shared_secrets(tmp_path: Path, algorithm: str) -> None:
    """The secret's file is good for the HS algorithms that are configured, and for no other."""
    text = token(SECRET, algorithm)
    assert caller(by_secret(tmp_path, algorithms=(algorithm,)), text).client == "7"
    others = tuple({"HS256", "HS384", "HS512"} - {algorithm})
    assert refusal(by_secret(tmp_path, algorithms=others), text) == NOT_ACCEPTED


def test_one_line_break_is_no_part_of_the_secret(tmp_path: Path) -> None:
    """Editors end a file with a line break; more of them are meant."""
    for ending in (b"\n", b"\r\n"):
        assert caller(by_secret(tmp_path, SECRET + ending), token()).tenant == "1"
    assert caller(by_secret(tmp_path, SECRET + b"\n\n"), token(SECRET + b"\n")).tenant == "1"


def test_keys_of_all_sorts_together(tmp_path: Path) -> None:
    """A secret, two PEM files and a JWKS are all taken at once."""
    auth = Auth(
        jwt_secret_file=written(tmp_path, "secret", SECRET),
        jwt_public_key_files=(written(tmp_path, "rsa", public_pem(RSA)), written(tmp_path, "ec", public_pem(P256))),
        jwks_file=jwks_file(tmp_path, jwk(ED25519, kid="ed")),
    )
    for text in (token(), token(RSA, "RS256"), token(P256, "ES256"), token(ED25519, "EdDSA")):
        assert caller(auth, text).tenant == "1"


def test_the_key_id_decides(tmp_path: Path) -> None:
    """A `kid` that is known leaves one key, whatever others would say; an unknown one leaves all."""
    auth = Auth(jwks_file=jwks_file(tmp_path, jwk(RSA, kid="a"), jwk(RSA_OF_ANOTHER, kid="b")))
    assert caller(auth, token(RSA, "RS256", headers={"kid": "a"})).tenant == "1"
    assert refusal(auth, token(RSA, "RS256", headers={"kid": "b"})) == NOT_ACCEPTED
    assert caller(auth, token(RSA, "RS256", headers={"kid": "c"})).tenant == "1"
    assert caller(auth, token(RSA_OF_ANOTHER, "RS256")).tenant == "1"


@pytest.mark.parametrize("kid", ["../../dev/null", "/etc/passwd", "' or 1=1 --", "a\0", "x" * 2000, "é"])
def test_key_ids_are_names_only(tmp_path: Path, kid: str) -> None:
    """A `kid` is compared and nothing else: no file, no statement."""
    auth = Auth(jwks_file=jwks_file(tmp_path, secret_jwk(SECRET, kid="a")))
    by_nothing = signed({"alg": "HS256", "kid": kid}, CLAIMS, b"")  # as if it had led to an empty file
    assert refusal(auth, by_nothing) == NOT_ACCEPTED
    assert caller(auth, token(headers={"kid": kid})).tenant == "1"


@pytest.mark.parametrize(
    "name", ["none", "None", "NONE", "nOnE", "", "HS257", "hs256", "ES521", "dir", None, 1, ["HS256"]]
)
def test_no_algorithm_is_no_signature(auth: Auth, name: object) -> None:
    """`alg` none in any spelling, unknown or of a wrong type is refused, with and without something as signature."""
    for signature in ("", part("signature"), token().rsplit(".", 1)[1]):
        assert refusal(auth, forged({"alg": name, "typ": "JWT"}, signature)) == NOT_ACCEPTED


def test_no_algorithm_named(auth: Auth) -> None:
    """A header without `alg` is refused."""
    assert refusal(auth, forged({"typ": "JWT"}, part("x"))) == NOT_ACCEPTED


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
@pytest.mark.parametrize("key", [RSA, P256, ED25519], ids=["rsa", "ec", "ed25519"])
def test_a_public_key_is_no_shared_secret(tmp_path: Path, key: PrivateKey, algorithm: str) -> None:
    """A token signed by HMAC with the text of the public key is refused, also where a secret is configured too."""
    pem = public_pem(key)
    auth = Auth(
        jwt_public_key_files=(written(tmp_path, "key.pem", pem),),
        jwt_secret_file=written(tmp_path, "secret", SECRET),
        algorithms=ALGORITHMS,
    )
    for secret in (pem, pem.strip(), pem.rstrip(b"\n"), b""):
        assert refusal(auth, signed({"alg": algorithm}, CLAIMS, secret)) == NOT_ACCEPTED


def test_a_key_in_the_token_is_not_looked_at(tmp_path: Path) -> None:
    """`jwk`, `jku`, `x5u` and `x5c` bring no key: what is not in the operator's files has signed nothing."""
    auth = by_public_keys(tmp_path, RSA)
    for headers in (
        {"jwk": jwk(RSA_OF_ANOTHER)},
        {"jku": "http://127.0.0.1:9/jwks.json"},
        {"x5u": "http://127.0.0.1:9/cert.pem"},
        {"x5c": ["MIIB"]},
    ):
        assert refusal(auth, token(RSA_OF_ANOTHER, "RS256", headers=headers)) == NOT_ACCEPTED
        assert caller(auth, token(RSA, "RS256", headers=headers)).tenant == "1"


@pytest.mark.parametrize(
    "headers", [{"crit": ["exp"], "exp": 1}, {"crit": ["b64"], "b64": True}, {"crit": []}, {"crit": 1}]
)
def test_extensions_are_refused(auth: Auth, headers: dict[str, Any]) -> None:
    """A header that must be understood and is not makes the token useless, however well it is signed."""
    text = signed({"alg": "HS256", **headers}, CLAIMS)
    assert refusal(auth, text) in (
        MALFORMED,
        "the token's header demands an extension (crit, b64) that is not taken here",
    )


def test_detached_payloads_are_refused(auth: Auth) -> None:
    """A payload that is not encoded (`b64` false, RFC 7797) is refused, in the token or beside it."""
    for payload in ("", part(CLAIMS)):
        head = f"{part({'alg': 'HS256', 'b64': False, 'crit': ['b64']})}.{payload}"
        assert refusal(auth, f"{head}.{part('x')}")


@pytest.mark.parametrize(
    "change",
    [
        lambda head, payload, signature: f"{head}.{payload}.",
        lambda head, payload, signature: f"{head}.{part(CLAIMS | {'tid': 2})}.{signature}",
        lambda head, payload, signature: f"{part({'alg': 'HS256', 'kid': 'x'})}.{payload}.{signature}",
        lambda head, payload, signature: f"{head}.{payload}.{signature[::-1]}",
        lambda head, payload, signature: f"{head}.{payload}.{signature[:-4]}",
        lambda head, payload, signature: f"{head}.{payload}.{signature}AAAA",
    ],
    ids=["stripped", "swapped payload", "swapped header", "turned", "shortened", "lengthened"],
)
def test_a_signature_is_for_its_token(auth: Auth, change: Any) -> None:
    """A token that was changed anywhere is refused in the same words as one of another key."""
    assert refusal(auth, change(*token().split("."))) in (NOT_ACCEPTED, MALFORMED)
    assert refusal(auth, token(b"another secret, which also has 32 bytes")) == NOT_ACCEPTED


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: ".",
        lambda text: "..",
        lambda text: text.rsplit(".", 1)[0],
        lambda text: f"{text}.",
        lambda text: f"{text}.{text}",
        lambda text: f"{text}.e30.e30",
        lambda text: f"{text}=",
        lambda text: f"{text} ",
        lambda text: f"{text}\n",
        lambda text: text.replace(".", " . "),
        lambda text: f"{text} {text}",
        lambda text: f"{text},Bearer {text}",
        lambda text: text.replace(".", "%2e"),
        lambda text: f"{text}\0",
        lambda text: f"é{text}",
        lambda text: f'"{text}"',
        lambda text: "A." + text.partition(".")[2],
        lambda text: f"{part([])}.{text.partition('.')[2]}",
        lambda text: f"{part('HS256')}.{text.partition('.')[2]}",
        lambda text: f"{part_of_bytes(b'{')}.{text.partition('.')[2]}",
        lambda text: f"{part_of_bytes(bytes([255]) * 9)}.{text.partition('.')[2]}",
        lambda text: f"{part_of_bytes(b'[' * 5000)}.{text.partition('.')[2]}",
        lambda text: f"{part_of_bytes(b'9' * 5000)}.{text.partition('.')[2]}",
        lambda text: f"{part({'alg': 'HS256', 'kid': {'a': 1}})}.{text.partition('.')[2]}",
        lambda text: f"{part({'alg': 'dir', 'enc': 'A256GCM'})}..aXY.Y2lwaGVy.dGFn",
        lambda text: part_of_bytes(json.dumps({"payload": "", "signatures": []}).encode()),
    ],
)
def test_malformed_tokens(auth: Auth, change: Any) -> None:
    """What is no compact JWS with a JSON object for a header is refused as such: JWE, more parts, spaces, bombs."""
    assert refusal(auth, change(token())) == MALFORMED


def test_tokens_are_bounded(auth: Auth) -> None:
    """A token over the bound is refused before anything of it is read; one below is taken."""
    assert (
        refusal(auth, token(filler="x" * TOKEN_MAX_CHARS)) == f"the token is longer than {TOKEN_MAX_CHARS} characters"
    )
    text = token(filler="x" * 5500)
    assert len(text) < TOKEN_MAX_CHARS
    assert caller(auth, text).tenant == "1"


def test_without_keys_nothing_is_taken() -> None:
    """Where no key is configured every token is refused, in the words for any bad one."""
    assert refusal(Auth(), token()) == NOT_ACCEPTED
    assert refusal(Auth(), forged({"alg": "none"})) == NOT_ACCEPTED
