"""Secrets at rest, and the key they are sealed with."""

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.secrets import Secret
from imagejobd.store.vault import CREDENTIAL_NAME, KEY_BYTES, KEY_FILE_NAME, Vault

KEY = bytes(range(KEY_BYTES))
UUID = "0190a0b0-0000-7000-8000-000000000001"


@given(
    values=st.dictionaries(
        st.text(alphabet=st.characters(codec="utf-8")), st.text(alphabet=st.characters(codec="utf-8"))
    )
)
def test_what_is_sealed_can_be_opened(values: dict[str, str]) -> None:
    """Any names and values come back, and not in the clear."""
    secrets = {name: Secret(value) for name, value in values.items()}
    assert Vault(KEY).open(UUID, Vault(KEY).seal(UUID, secrets)) == secrets


@pytest.mark.parametrize(
    ("key", "uuid", "flip"),
    [(bytes(KEY_BYTES), UUID, False), (KEY, "another job", False), (KEY, UUID, True)],
    ids=["another key", "another job's row", "a changed byte"],
)
def test_what_does_not_belong_is_refused(key: bytes, uuid: str, flip: bool) -> None:
    """Another key, another job, or a changed byte open nothing, and the message has no secret in it."""
    sealed = bytearray(Vault(KEY).seal(UUID, {"password": Secret("hunter2")}))
    sealed[-1] ^= flip
    with pytest.raises(Permanent) as refused:
        Vault(key).open(uuid, bytes(sealed))
    assert refused.value.code is ErrorCode.SECRETS_LOST
    assert "hunter2" not in refused.value.message


def test_the_same_secrets_never_look_the_same() -> None:
    """Each sealing has a nonce of its own."""
    secrets = {"password": Secret("hunter2")}
    assert Vault(KEY).seal(UUID, secrets) != Vault(KEY).seal(UUID, secrets)


def test_the_first_start_makes_a_private_key(tmp_path: Path) -> None:
    """A key file of 32 random bytes, mode 0600, that later starts use again."""
    first = Vault.from_environment(tmp_path, {})
    path = tmp_path / KEY_FILE_NAME
    assert (path.stat().st_mode & 0o777, path.stat().st_size) == (0o600, KEY_BYTES)
    assert [found.name for found in tmp_path.iterdir()] == [KEY_FILE_NAME]
    sealed = first.seal(UUID, {"a": Secret("b")})
    assert Vault.from_environment(tmp_path, {}).open(UUID, sealed) == {"a": Secret("b")}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    """The start stops and says what to do."""
    Vault.from_environment(tmp_path, {})
    (tmp_path / KEY_FILE_NAME).chmod(mode)
    with pytest.raises(Permanent, match="chmod 600"):
        Vault.from_environment(tmp_path, {})


@pytest.mark.parametrize("data", [KEY, base64.b64encode(KEY) + b"\n"], ids=["raw", "base64"])
def test_systemds_credential_comes_first(tmp_path: Path, data: bytes) -> None:
    """With a credential no key file is made; it may be raw or base64."""
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / CREDENTIAL_NAME).write_bytes(data)
    vault = Vault.from_environment(tmp_path, {"CREDENTIALS_DIRECTORY": str(credentials)})
    assert vault.open(UUID, Vault(KEY).seal(UUID, {})) == {}
    assert not (tmp_path / KEY_FILE_NAME).exists()


@pytest.mark.parametrize("data", [b"", b"short", b"x" * 33, b"!" * 44])
def test_what_is_no_key_is_refused(tmp_path: Path, data: bytes) -> None:
    """A file of another size or form is named, with the command that makes a key."""
    path = tmp_path / KEY_FILE_NAME
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(Permanent, match="openssl rand"):
        Vault.from_environment(tmp_path, {})
