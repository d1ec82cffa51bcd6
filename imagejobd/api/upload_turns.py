"""Turns at taking in uploads: a bound on what is written at once, of which no tenant can have all for itself."""

import asyncio
from contextlib import ExitStack
from weakref import WeakValueDictionary

from imagejobd.api.wire import busy

# A burst of uploads waits its turn; only what lasts longer is refused.
TURN_TIMEOUT_S = 10.0


class UploadTurns:
    """`most` turns; one tenant holds half of them at most, and always may hold one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._most_each = max(1, most // 2)
        self._all = asyncio.Semaphore(most)
        self._tenants: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def take(self, tenant: str) -> ExitStack:
        """Wait for a turn, which ends when what is returned is closed. Raises `Temporary(queue_full)` when none comes
        soon."""
        own = self._tenants.setdefault(tenant, asyncio.Semaphore(self._most_each))
        with ExitStack() as held:
            try:
                async with asyncio.timeout(TURN_TIMEOUT_S):
                    for turns in (own, self._all):
                        await turns.acquire()
                        held.callback(turns.release)
            except TimeoutError:
                shares = f"server.uploads_max = {self._most}, one tenant's share {self._most_each}"
                raise busy(f"too many uploads are under way ({shares})") from None
            return held.pop_all()
