"""Contexts that are fetched: end to end, across crashes, and never from where egress forbids."""

from collections.abc import Iterator

import pytest

from harness.bodies import dockerfile, tar
from harness.build_box import BuildBox
from harness.engine import PrivateEngine
from harness.file_server import FileServer
from harness.registry import Registry
from harness.waiting import until
from imagejobd.model.failpoint import EXIT_STATUS

DENIED = "127.0.0.2"
EGRESS = {"deny": [f"{DENIED}/32"]}
CONTEXT = tar({"Dockerfile": dockerfile("COPY word /", "RUN cat /word"), "word": "fetched\n"}, packed=True)


def url_of(web: FileServer, path: str, *, address: str = "127.0.0.1") -> str:
    return f"http://{address}:{web.port}{path}"


PLACED = tar(
    {"Dockerfile": dockerfile("RUN exit 1"), "sub/app": dockerfile("COPY word /", "RUN cat /word"), "word": "w\n"}
)


@pytest.fixture
def web() -> Iterator[FileServer]:
    # The denied address is served too: only the daemon keeps away from it.
    with FileServer({"/c.tar.gz": CONTEXT, "/placed.tar": PLACED}, address="0.0.0.0") as web:
        yield web


def test_fetch(engine: PrivateEngine, registry: Registry, web: FileServer) -> None:
    """A context comes from a URL, with or without scheme, and over a redirect; a missing one ends the job."""
    web.redirects["/moved"] = "/c.tar.gz?signature=abcdef"
    with BuildBox(engine, egress=EGRESS) as b:
        image = f"{registry.host}/fetch/plain"
        jobs = [
            b.build(f"{image}:1", "", tarUrl=url_of(web, "/c.tar.gz").removeprefix("http://")),
            b.build(f"{image}:2", "", tar_url=url_of(web, "/moved")),
        ]
        for ended in b.all_succeeded(*jobs):
            assert [phase["name"] for phase in ended["phases"]] == ["fetching", "building", "pushing", "purging"]
            assert "fetching http://127.0.0.1:" in b.logs(ended["id"])
        missing = b.ended(b.build(image, "", tarUrl=url_of(web, "/nothing")))
        assert (missing["state"], missing["attempt"], missing["error"]["code"]) == ("failed", 1, "fetch_failed")
        assert "answered 404" in missing["error"]["message"]
        b.check_clean()


def test_dockerfile_path(engine: PrivateEngine, registry: Registry, web: FileServer) -> None:
    """The Dockerfile of a fetched context is read at its path; one that is not there ends the job."""
    with BuildBox(engine, egress=EGRESS) as b:
        image, url = f"{registry.host}/fetch/placed:1", url_of(web, "/placed.tar")
        good = b.submit_build(image, "", tar_url=url, dockerfile_path="sub/app")
        bad = b.submit_build(image, "", tar_url=url, dockerfile_path="sub/App")
        b.succeeded(good)
        assert "w\n" in b.log(good)
        assert "sub/App" in b.failed(bad, "invalid")["error"]["message"]
        b.check_clean()


def test_egress(engine: PrivateEngine, registry: Registry, web: FileServer) -> None:
    """An address that egress denies is never connected to: not directly, not in another spelling, not by a redirect."""
    web.redirects["/away"] = url_of(web, "/c.tar.gz", address=DENIED)
    with BuildBox(engine, egress=EGRESS) as b:
        for url in (
            url_of(web, "/c.tar.gz", address=DENIED),
            url_of(web, "/c.tar.gz", address="[::ffff:127.0.0.2]"),
            url_of(web, "/away"),
        ):
            ended = b.ended(b.build(f"{registry.host}/fetch/denied", "", tarUrl=url))
            assert (ended["state"], ended["attempt"], ended["error"]["code"]) == ("failed", 1, "egress")
            assert "[egress] deny" in b.status(ended["id"])
        b.check_clean()
    assert [asked.address for asked in web.requests] == ["127.0.0.1"]


def test_crash_after_the_fetch(engine: PrivateEngine, registry: Registry, web: FileServer) -> None:
    """What was fetched before a crash is not fetched again."""
    with BuildBox(engine) as b:
        b.daemon.kill()
        b.daemon.start(failpoints="after_fetch")
        job = b.build(f"{registry.host}/fetch/crash:1", "", tarUrl=url_of(web, "/c.tar.gz"))
        assert b.daemon.wait() == EXIT_STATUS
        b.restart()
        b.succeeded(job)
        assert web.count("/c.tar.gz") == 1
        b.check_clean()


def test_crash_during_the_fetch(engine: PrivateEngine, registry: Registry, web: FileServer) -> None:
    """A fetch that a crash cuts begins anew, and its half of a file is gone."""
    web.files["/slow"], web.stalled = CONTEXT, {"/slow"}
    with BuildBox(engine) as b:
        job = b.build(f"{registry.host}/fetch/slow:1", "", tarUrl=url_of(web, "/slow"))
        until(lambda: web.count("/slow") == 1, what="the fetch")
        assert b.status(job) == "Building"
        b.daemon.kill()
        web.release()
        b.daemon.start()
        b.succeeded(job)
        assert web.count("/slow") == 2
        b.check_clean()
