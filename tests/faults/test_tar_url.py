"""Contexts that are fetched: end to end, across crashes, and never from where egress forbids."""

import io
import tarfile
from collections.abc import Iterator

import pytest
from box import box, dockerfile
from web_server import WebServer

from harness.engine import PrivateEngine
from harness.registry import Registry
from harness.waiting import until
from imagejobd.model.failpoint import EXIT_STATUS

DENIED = "127.0.0.2"
EGRESS = {"deny": [f"{DENIED}/32"]}


def context() -> bytes:
    """A gzipped tar with a Dockerfile and a file."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in (("Dockerfile", dockerfile("COPY word /", "RUN cat /word")), ("word", "fetched\n")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content.encode()))
    return archive.getvalue()


@pytest.fixture
def web() -> Iterator[WebServer]:
    with WebServer().running() as web:
        web.files["/c.tar.gz"] = context()
        yield web


def test_fetch(engine: PrivateEngine, registry: Registry, web: WebServer) -> None:
    """A context comes from a URL, with or without scheme, and over a redirect; a missing one ends the job."""
    web.redirects["/moved"] = "/c.tar.gz?signature=abcdef"
    with box(engine, egress=EGRESS) as b:
        image = f"{registry.host}/fetch/plain"
        jobs = [
            b.build(f"{image}:1", "", tarUrl=web.url("/c.tar.gz").removeprefix("http://")),
            b.build(f"{image}:2", "", tar_url=web.url("/moved")),
        ]
        for ended in b.succeeded(*jobs):
            assert [phase["name"] for phase in ended["phases"]] == ["fetching", "building", "pushing", "purging"]
            assert "fetching http://127.0.0.1:" in b.logs(ended["id"])
        missing = b.ended(b.build(image, "", tarUrl=web.url("/nothing")))
        assert (missing["state"], missing["attempt"], missing["error"]["code"]) == ("failed", 1, "fetch_failed")
        assert "answered 404" in missing["error"]["message"]
        b.check_clean()


def test_egress(engine: PrivateEngine, registry: Registry, web: WebServer) -> None:
    """An address that egress denies is never connected to: not directly, not in another spelling, not by a redirect."""
    web.redirects["/away"] = web.url("/c.tar.gz", address=DENIED)
    with box(engine, egress=EGRESS) as b:
        for url in (
            web.url("/c.tar.gz", address=DENIED),
            web.url("/c.tar.gz", address="[::ffff:127.0.0.2]"),
            web.url("/away"),
        ):
            ended = b.ended(b.build(f"{registry.host}/fetch/denied", "", tarUrl=url))
            assert (ended["state"], ended["attempt"], ended["error"]["code"]) == ("failed", 1, "egress")
            assert "[egress] deny" in b.status(ended["id"])
        b.check_clean()
    assert [host for host, _, _ in web.requests] == ["127.0.0.1"]


def test_crash_after_the_fetch(engine: PrivateEngine, registry: Registry, web: WebServer) -> None:
    """What was fetched before a crash is not fetched again."""
    with box(engine) as b:
        b.daemon.kill()
        b.daemon.start(failpoints="after_fetch")
        job = b.build(f"{registry.host}/fetch/crash:1", "", tarUrl=web.url("/c.tar.gz"))
        assert b.daemon.wait() == EXIT_STATUS
        b.restart()
        b.succeeded(job)
        assert web.count("/c.tar.gz") == 1
        b.check_clean()


def test_crash_during_the_fetch(engine: PrivateEngine, registry: Registry, web: WebServer) -> None:
    """A fetch that a crash cuts begins anew, and its half of a file is gone."""
    web.files["/slow"], web.stalled = context(), {"/slow"}
    with box(engine) as b:
        job = b.build(f"{registry.host}/fetch/slow:1", "", tarUrl=web.url("/slow"))
        until(lambda: web.count("/slow") == 1, timeout_s=10, what="the fetch")
        assert b.status(job) == "Building"
        b.daemon.kill()
        web.go_on.set()
        b.daemon.start()
        b.succeeded(job)
        assert web.count("/slow") == 2
        b.check_clean()
