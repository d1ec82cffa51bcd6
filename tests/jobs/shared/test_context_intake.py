"""Taking in a context, and what stays of one that is given up."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from imagejobd.archive import ContextBounds
from imagejobd.jobs.shared.context import keep_context
from imagejobd.store.blobs import BlobStore


async def test_a_cancelled_rewrite_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when its thread comes to work only after the caller has given up and gone."""
    blobs = BlobStore(tmp_path)
    raw = tmp_path / "raw"
    raw.write_bytes(bytes(10240))
    started, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def late(ctx: Any) -> Any:
        def working() -> None:
            started.set()
            go_on.wait(20)
            try:
                ctx()
            finally:
                ended.set()

        return asyncio.get_running_loop().run_in_executor(None, working)

    monkeypatch.setattr(asyncio, "to_thread", late)
    keeping = asyncio.create_task(keep_context(blobs, raw, ContextBounds(max_bytes=2**20, max_entries=10)))
    while not started.is_set():
        await asyncio.sleep(0.01)
    keeping.cancel()
    await asyncio.wait([keeping])
    go_on.set()
    while not ended.is_set():
        await asyncio.sleep(0.01)
    assert list((tmp_path / "spool").iterdir()) == []
