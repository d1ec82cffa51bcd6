"""A backup that was made while the daemon worked is a daemon's whole state."""

import base64
import json
import random
import shutil
import sqlite3
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from terminals import run

from harness.box import Box
from harness.build_box import BuildBox
from harness.logins import BASIC, PASSWORD
from harness.registry import Registry

PAYLOAD = b"a payload that is no image: " + bytes(range(256)) * 100


@pytest.fixture(scope="module")
def box() -> Iterator[BuildBox]:
    """A daemon without an engine: what is to be built waits."""
    with BuildBox(limits={"retry_first_s": 600.0, "retry_max_s": 600.0}) as box:
        yield box


def test_restored_and_started(box: BuildBox, tmp_path: Path) -> None:
    """On the restored folder a daemon starts that has every job and payload, and does what waits with its password."""
    kept = run(box.daemon.url, "dispatch", "-", input=PAYLOAD, cwd=tmp_path)
    assert kept.code == 0, kept.err
    archive = tmp_path / "backup.tar"
    with Registry(htpasswd=True) as registry:
        registry.put_image("backup/app", "1")
        registry.stop()
        place = {"endpoint": registry.url, "auth": BASIC}
        spec = {"source": place | {"image": "backup/app", "ref": "1"}, "targets": [place | {"image": "backup/copy"}]}
        waiting = box.submit("distribute", spec)

        done = run(box.daemon.url, "backup", str(archive), "--config", str(box.daemon.config_file))
        assert done.code == 0, done.err
        registry.start()
        with Box() as restored:
            restored.daemon.terminate()
            shutil.rmtree(restored.daemon.state_dir)
            restored.daemon.state_dir.mkdir()
            subprocess.run(["tar", "-xpf", str(archive), "-C", str(restored.daemon.state_dir)], check=True)
            restored.daemon.start()
            number = kept.out.strip().rpartition("/")[2]
            assert restored.job(number)["state"] == "succeeded"
            assert restored.blobs() == box.blobs()
            restored.succeeded(waiting)
            assert registry.tags("backup/copy") == ["1"]
            restored.check_healthy()
    assert archive.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [archive]
    assert PASSWORD.encode() not in archive.read_bytes()
    box.check_healthy()


def test_while_jobs_come(box: BuildBox, tmp_path: Path) -> None:
    """Each job of the backup has its payload there, whatever came while it was made; the database is sound."""
    archive, stop = tmp_path / "backup.tar", threading.Event()

    def submit() -> None:
        while not stop.is_set():
            payload = base64.b64encode(random.randbytes(32 * 1024)).decode()
            answer = box.call("POST", "/api/v2/jobs", {"kind": "dispatch", "spec": {}, "context": payload})
            assert answer.status == 201

    with ThreadPoolExecutor(2) as pool:
        clients = [pool.submit(submit) for _ in range(2)]
        for _ in range(3):
            done = run("", "backup", str(archive), "--config", str(box.daemon.config_file))
            assert done.code == 0, done.err
        stop.set()
        for client in clients:
            client.result()
    with tarfile.open(archive) as tar:
        names = set(tar.getnames())
        tar.extract("imagejobd.db", tmp_path, filter="data")
    with closing(sqlite3.connect(tmp_path / "imagejobd.db")) as db:
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)
        digests = [row[0] for row in db.execute("select digest from job_blob")]
    assert len(digests) > 10
    assert {f"blobs/sha256/{digest[7:9]}/{digest[7:]}" for digest in digests} <= names


def test_nobody_else_has_the_file_open(box: BuildBox, tmp_path: Path) -> None:
    """A file that somebody has made before, in a folder that is open to all, does not become the backup."""
    archive, foreign = tmp_path / "backup.tar", tmp_path / ".backup.tar.partial"
    for path in (archive, foreign):
        path.touch()
        path.chmod(0o666)
    with archive.open("rb") as first, foreign.open("rb") as second:
        assert run("", "backup", str(archive), "--config", str(box.daemon.config_file)).code == 0
        assert (first.read(), second.read()) == (b"", b"")
    assert archive.stat().st_mode & 0o777 == 0o600


def test_to_standard_output_as_json(box: BuildBox, tmp_path: Path) -> None:
    """`-` writes the tar to stdout; what it holds is said on stderr."""
    command = ["backup", "-", "--json", "--config", str(box.daemon.config_file)]
    done = run(box.daemon.url, *command, cwd=tmp_path)
    assert done.code == 0
    assert json.loads(done.err)["has_key"] is True
    assert "imagejobd.db" in done.out


@pytest.mark.parametrize("folder", ["absent", "empty"])
def test_nothing_to_back_up(tmp_path: Path, folder: str) -> None:
    """Exit 1 with what is missing; no file is left where the backup should be."""
    (tmp_path / "empty").mkdir()
    archive = tmp_path / "backup.tar"
    done = run("", "backup", str(archive), "--state-dir", str(tmp_path / folder))
    assert done.code == 1
    assert "there is no job database" in done.err
    assert not archive.exists()


def test_not_our_database(tmp_path: Path) -> None:
    """A file that is no job database is not taken for one."""
    (tmp_path / "imagejobd.db").write_text("the diary of somebody\n" * 100)
    done = run("", "backup", str(tmp_path / "backup.tar"), "--state-dir", str(tmp_path))
    assert done.code == 1
    assert "job database" in done.err
