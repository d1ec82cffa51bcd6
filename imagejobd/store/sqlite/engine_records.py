"""What the daemon remembers of its Docker Engine: who it is there, and which public bases it has pulled."""

from collections.abc import Collection

import msgspec

from imagejobd.model.ownership import PulledBase
from imagejobd.store.sqlite.database import load
from imagejobd.store.sqlite.readers import Readers
from imagejobd.store.sqlite.writer import Writer

_SQL = load("engine_records")


class EngineRecords:
    """Implements `model.ownership.PulledBases`."""

    def __init__(self, writer: Writer, readers: Readers) -> None:
        self._writer = writer
        self._readers = readers

    async def installation(self) -> str:
        """The id that was given to this database as it was made; a copy of it has the same."""
        [row] = await self._readers.all(_SQL["installation"])
        return str(row["id"])

    async def known(self, uuids: Collection[str]) -> set[str]:
        """Those of `uuids` that are jobs of this store, ended ones too."""
        rows = await self._readers.all(_SQL["known"], {"uuids": msgspec.json.encode(list(uuids)).decode()})
        return {row["uuid"] for row in rows}

    async def pulled(self, name: str, image_id: str) -> None:
        await self._write("pulled", name=name, image_id=image_id)

    async def used(self, name: str) -> None:
        await self._write("used", name=name)

    async def bases(self) -> list[PulledBase]:
        rows = await self._readers.all(_SQL["bases"])
        return [PulledBase(row["name"], row["image_id"], row["used_ms"]) for row in rows]

    async def forget(self, base: PulledBase) -> None:
        await self._write("forget", name=base.name, image_id=base.image_id)

    async def _write(self, statement: str, **values: str) -> None:
        await self._writer.do(lambda tx: tx.db.execute(_SQL[statement], values | {"now_ms": tx.now_ms}).rowcount)
