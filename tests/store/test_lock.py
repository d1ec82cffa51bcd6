"""Two daemons never share a state folder."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.store.lock import hold_database, lock_state_dir

HOLD = "import sys, pathlib; from imagejobd.store.lock import lock_state_dir\n"
HOLD += "with lock_state_dir(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
OPEN = """
import asyncio, pathlib, sys
from imagejobd.store.sqlite.store import SqliteStore
from imagejobd.store.vault import Vault

async def main():
    async with SqliteStore.open(pathlib.Path(sys.argv[1]), vault=Vault(bytes(32))):
        print("open", flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


def test_a_second_holder_is_told_who_has_it(tmp_path: Path) -> None:
    """It is refused at once, with the process that holds the folder."""
    with lock_state_dir(tmp_path):
        with pytest.raises(Permanent, match=f"process {os.getpid()}") as refused, lock_state_dir(tmp_path):
            pass
        assert refused.value.code is ErrorCode.CONFLICT
    with lock_state_dir(tmp_path):
        pass


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    """After `kill -9` the next start gets the folder, although the file is still there."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Permanent), lock_state_dir(tmp_path):
            pass
        holder.kill()
        holder.wait()
    with lock_state_dir(tmp_path):
        pass


def test_a_second_daemon_is_refused_though_the_lock_file_is_gone(tmp_path: Path) -> None:
    """The database has a lock of its own, which goes with its holder; people may read the file meanwhile."""
    path = tmp_path / "imagejobd.db"
    with subprocess.Popen(
        [sys.executable, "-c", OPEN, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with lock_state_dir(tmp_path):
            pass
        with pytest.raises(Permanent, match="another imagejobd uses the database") as refused, hold_database(path):
            pass
        assert refused.value.code is ErrorCode.CONFLICT
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as reader:
            assert reader.execute("select count(*) from job").fetchone() == (0,)
        holder.kill()
        holder.wait()
    with hold_database(path):
        pass
