"""What must hold of a daemon after whatever tests have done to it."""

import urllib.request
from contextlib import closing
from sqlite3 import connect

from harness.daemon import Daemon

ANSWER_TIMEOUT_S = 10.0


def check_healthy(daemon: Daemon) -> None:
    """It answers, has met no defect of its own, has a sound database, and no file of an ended job lies about."""
    with urllib.request.urlopen(f"{daemon.url}/readyz", timeout=ANSWER_TIMEOUT_S) as response:
        assert response.status == 200
    log = daemon.log_text()
    assert "Traceback" not in log, log[-3000:]
    assert "defect of imagejobd" not in log, log[-3000:]
    spooled = list((daemon.state_dir / "spool").iterdir())
    assert spooled == [], spooled
    with closing(connect(f"file:{daemon.database_file}?mode=ro", uri=True)) as db:
        assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert db.execute("pragma foreign_key_check").fetchall() == []
