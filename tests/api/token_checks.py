"""What the tests of tokens ask: whom one names, or why it is refused."""

import pytest
from signing import SECRET

from imagejobd.api.auth import Tokens
from imagejobd.api.intake import Caller
from imagejobd.api.keys import Auth, load_keys
from imagejobd.model.errors import ErrorCode, Permanent

NOW_S = 1_800_000_000
NOT_ACCEPTED = "the token's signature or algorithm is not accepted"
MALFORMED = "the token is malformed: a signed JWT has three parts in base64url, joined by dots"


def caller(auth: Auth, text: str, now_s: float = NOW_S) -> Caller:
    return Tokens(load_keys(auth), auth).caller(text, now_s)


def refusal(auth: Auth, text: str, now_s: float = NOW_S) -> str:
    """Why a token is refused; never with a word of the token or of a key."""
    with pytest.raises(Permanent) as refused:
        caller(auth, text, now_s)
    assert refused.value.code is ErrorCode.UNAUTHENTICATED
    for secret in (SECRET.decode(), *(piece for piece in text.split(".") if len(piece) > 3)):
        assert secret not in refused.value.message
    return refused.value.message
