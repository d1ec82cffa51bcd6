"""`kill -9` at any moment: what was acknowledged is there."""

import os
import random
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import imagejobd
from imagejobd.model.job import State
from imagejobd.store.sqlite.store import SqliteStore
from imagejobd.store.vault import Vault

SCRIPT = Path(__file__).with_name("store_under_load.py")
KILLS = 3


def run_and_kill(database: Path, after_s: float) -> list[tuple[str, str]]:
    """What the process was answered before it was killed: (word, uuid)."""
    output = database.with_suffix(".out")
    command = [sys.executable, str(SCRIPT), str(database)]
    environment = os.environ | {"PYTHONPATH": str(Path(imagejobd.__file__).parents[1])}
    with output.open("wb") as file, subprocess.Popen(command, stdout=file, env=environment) as process:
        while not output.stat().st_size:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(after_s)
        process.kill()
    lines = [line.split() for line in output.read_text().splitlines()]
    return [(word, uuid) for word, uuid in lines]


async def test_nothing_acknowledged_is_lost(database: Path, vault: Vault) -> None:
    """Every accepted job is there, every finished one is finished, lanes count right, and the file is sound."""
    answers: list[tuple[str, str]] = []
    for _ in range(KILLS):
        answers += run_and_kill(database, random.uniform(0.05, 0.3))
    accepted = {uuid for word, uuid in answers if word == "accepted"}
    finished = {uuid for word, uuid in answers if word == "finished"}
    assert len(accepted) > KILLS
    async with SqliteStore.open(database, vault=vault) as store:
        await store.rescue("after", crashes_max=KILLS + 1)
    db = sqlite3.connect(database)
    states = dict(db.execute("select uuid, state from job"))
    assert accepted <= states.keys()
    assert all(states[uuid] == State.SUCCEEDED for uuid in finished)
    (lane,) = db.execute("select ready, delayed, running from lane")
    assert lane == (Counter(states.values())[State.QUEUED], 0, 0)
    assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    assert db.execute("pragma foreign_key_check").fetchall() == []
    db.close()
