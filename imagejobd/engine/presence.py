"""Daemons beside each other on one engine: each notes there that it works, and sees who else does.

A note is a volume without content, which the engine keeps through restarts of both. Its name holds a time, so that the
note of a daemon that died counts for `ALIVE_FOR_S` at most. No daemon removes another's.
"""

import asyncio
import re
import time
from collections.abc import Callable, Iterable

import structlog

from imagejobd.engine.client import Engine
from imagejobd.engine.container import Volume, list_volumes, make_volume, remove_volume
from imagejobd.model.errors import Fault
from imagejobd.model.ownership import INSTALLATION_LABEL

RENEW_EVERY_S = 60.0
RENEW_RETRY_S = 5.0
ALIVE_FOR_S = 180.0
WITHDRAW_TIMEOUT_S = 1.0

_NOTE = re.compile(r"imagejobd-([0-9a-f]{12})-alive-(\d{1,12})")

log = structlog.get_logger("imagejobd.engine")


def working(engine: Engine, volumes: Iterable[Volume], now_s: float) -> set[str]:
    """The other installations whose notes among `volumes` are of now; a clock that was set makes none immortal."""
    return {
        match[1]
        for volume in volumes
        if (match := _NOTE.fullmatch(volume.name))
        and volume.label(INSTALLATION_LABEL) == match[1] != engine.installation
        and abs(now_s - int(match[2])) < ALIVE_FOR_S
    }


class Presence:
    """This daemon's own note, and the others that it sees. One per engine."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._clock = clock
        self._others: set[str] = set()
        self._is_noted = False

    @property
    def others(self) -> list[str]:
        """The installations whose daemons were seen at work on this engine when it last answered."""
        return sorted(self._others)

    async def renew(self) -> None:
        """Note that this daemon works, and look who else does. Raises as `Engine.request` does."""
        now_s = self._clock()
        note = f"{self._prefix}{int(now_s)}"
        self._is_noted = True
        await make_volume(self._engine, note, {})
        volumes = await list_volumes(self._engine, INSTALLATION_LABEL)
        await self._remove_notes(volumes, but=note)
        others = working(self._engine, volumes, now_s)
        for installation in sorted(others - self._others):
            log.warning(
                "another daemon works on this Docker Engine; both may, and the build cache is pruned by both",
                installation=installation,
                own=self._engine.installation,
            )
        for installation in sorted(self._others - others):
            log.info("the other daemon no longer works on this Docker Engine", installation=installation)
        self._others = others

    async def withdraw(self) -> None:
        """Take the note away, for a daemon that stops; an engine that does not answer soon keeps it for a while."""
        if not self._is_noted:
            return
        try:
            async with asyncio.timeout(WITHDRAW_TIMEOUT_S):
                await self._remove_notes(await list_volumes(self._engine, INSTALLATION_LABEL))
        except (Fault, TimeoutError) as error:
            log.info("cannot remove the note that this daemon works", error=str(error))

    @property
    def _prefix(self) -> str:
        return f"imagejobd-{self._engine.installation}-alive-"

    async def _remove_notes(self, volumes: Iterable[Volume], but: str = "") -> None:
        for volume in volumes:
            if volume.name.startswith(self._prefix) and volume.name != but:
                await remove_volume(self._engine, volume.name)


async def presence_loop(presence: Presence) -> None:
    """Renew the note now and every minute, as soon as the engine answers."""
    while True:
        try:
            await presence.renew()
        except Fault:
            # An engine that does not answer is in the log already.
            await asyncio.sleep(RENEW_RETRY_S)
        else:
            await asyncio.sleep(RENEW_EVERY_S)
