"""How long a token is good for, and who waits for a new one."""

import asyncio

import pytest
from moved_clock import MovedClock

from imagejobd.model.errors import ErrorCode, Permanent, Temporary
from imagejobd.registry.auth import LIFETIME_MAX_S, Token, TokenAnswer, Tokens, renew_at


@pytest.mark.parametrize(
    ("expires_in", "issued_at", "rest_s"),
    [
        (300, None, 290),
        (50, None, 54),
        (-5, None, 54),
        (60, "2030-01-01T00:00:00Z", 54),
        (300, "2029-12-31T23:59:00Z", 230),
        (300, "2029-12-31T23:59:00.123456789Z", 230),
        (300, "2030-01-01T01:00:00Z", 290),  # from the future: its clock is wrong
        (300, "2029-12-31T20:00:00Z", 290),  # long ago: then it would never be good
        (300, "yesterday", 290),
        (10**9, None, LIFETIME_MAX_S - 10),
    ],
)
def test_when_a_token_is_renewed(expires_in: float, issued_at: str | None, rest_s: float) -> None:
    """A tenth of its life, at most ten seconds, before its end."""
    time = MovedClock()
    answer = TokenAnswer(token="x", expires_in=expires_in, issued_at=issued_at)
    assert renew_at(answer, time.timing) - time.time_s == pytest.approx(rest_s, abs=0.2)


async def test_waiters_share_one_fetch_and_its_failure() -> None:
    """Whoever waited while a fetch failed gets that failure; whoever comes later tries anew."""
    time = MovedClock()
    tokens = Tokens(time.timing)
    fetches = 0
    gate = asyncio.Event()

    async def fail() -> Token:
        nonlocal fetches
        fetches += 1
        await gate.wait()
        raise Temporary(ErrorCode.REGISTRY_UNAVAILABLE, "busy", retry_after_s=3)

    tasks = [asyncio.create_task(tokens.get("key", fail)) for _ in range(5)]
    await asyncio.sleep(0)
    gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [Temporary] * 5
    assert {result.retry_after_s for result in results if isinstance(result, Temporary)} == {3}
    assert fetches == 1
    with pytest.raises(Temporary):
        await tokens.get("key", fail)
    assert fetches == 2


async def test_a_cancelled_fetch_is_taken_over() -> None:
    """Who waited behind a fetch that was cancelled fetches itself."""
    tokens = Tokens(MovedClock().timing)
    begun = asyncio.Event()

    async def hang() -> Token:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def fetch() -> Token:
        return Token("Bearer t", 2000.0)

    first = asyncio.create_task(tokens.get("key", hang))
    await begun.wait()
    second = asyncio.create_task(tokens.get("key", fetch))
    await asyncio.sleep(0)
    first.cancel()
    token, is_fresh = await second
    assert (token.header, is_fresh) == ("Bearer t", True)


async def test_each_key_has_its_own_failure() -> None:
    """A refusal for one repository says nothing of another."""
    tokens = Tokens(MovedClock().timing)

    async def refuse() -> Token:
        await asyncio.sleep(0)
        raise Permanent(ErrorCode.DENIED, "no")

    async def fetch() -> Token:
        return Token("Bearer t", 2000.0)

    refused, got = await asyncio.gather(tokens.get("a", refuse), tokens.get("b", fetch), return_exceptions=True)
    assert isinstance(refused, Permanent)
    assert isinstance(got, tuple)


async def test_only_the_refused_token_is_forgotten() -> None:
    """A late word about an old token does not throw the new one away."""
    tokens = Tokens(MovedClock().timing)
    numbers = iter(range(9))

    async def fetch() -> Token:
        return Token(f"Bearer t{next(numbers)}", 2000.0)

    old, _ = await tokens.get("key", fetch)
    tokens.forget(old)
    new, _ = await tokens.get("key", fetch)
    tokens.forget(old)
    assert (await tokens.get("key", fetch))[0] is new
    assert "t1" not in repr(new)
