"""`imagejobd copy` against real registries, and the queue as it is steered."""

import json
from collections.abc import Iterator

import pytest
from terminals import run, terminal

from harness.distribute_box import DistributeBox
from harness.images import put_image
from harness.registry import Registry


@pytest.fixture(scope="module")
def box() -> Iterator[DistributeBox]:
    with DistributeBox() as box:
        yield box


@pytest.fixture(scope="module")
def mirrors() -> Iterator[tuple[Registry, Registry]]:
    with Registry() as first, Registry() as second:
        yield first, second


def test_copy_renames(box: DistributeBox, registry: Registry, mirrors: tuple[Registry, Registry]) -> None:
    """A registry alone takes the image as it is called, a reference gives it another name; each target is a line."""
    image = put_image(registry, "cli/app", "1")
    first, second = mirrors
    done = run(
        box.daemon.url, "copy", f"{registry.host}/cli/app:1", first.host, f"http://{second.host}/team/app:stable"
    )
    assert done.code == 0, done.err
    assert first.digest("cli/app", "1") == second.digest("team/app", "stable") == image.digest
    assert len(done.out.splitlines()) == 2
    assert f"@{image.digest} 1 copied" in done.out


def test_copy_of_several_tags(box: DistributeBox, registry: Registry, mirrors: tuple[Registry, Registry]) -> None:
    """Tags are chosen by what they are called."""
    for tag in ("1.0", "1.1", "2.0"):
        put_image(registry, "cli/many", tag, seed=tag)
    target = mirrors[0]
    done = run(box.daemon.url, "copy", f"{registry.host}/cli/many", "--semver", ">=1 <2", "--newest", "1", target.host)
    assert done.code == 0, done.err
    assert target.tags("cli/many") == ["1.1"]


def test_a_copy_that_fails(box: DistributeBox, registry: Registry, mirrors: tuple[Registry, Registry]) -> None:
    """Exit 1 with what the registry has not got; 2 where that is known before there is a job."""
    command = ("copy", f"{registry.host}/cli/absent:1", mirrors[0].host)
    for done, code in ((run(box.daemon.url, *command), 2), (run(box.daemon.url, *command, "--key", "absent"), 1)):
        assert (done.code, done.out) == (code, "")
        assert "cli/absent" in done.err.splitlines()[-1]


def test_a_bar_per_target(box: DistributeBox, registry: Registry, mirrors: tuple[Registry, Registry]) -> None:
    """In a terminal every target has a line of its own while the copy goes on."""
    put_image(registry, "cli/bars", "1")
    first, second = mirrors
    with second.frozen():
        shown = terminal(box.daemon.url, "copy", f"{registry.host}/cli/bars:1", first.host, second.host)
        with shown as copying:
            copying.shows(f"{first.host} ━")
            copying.shows(f"{second.host} ━")
            copying.interrupt()
            copying.shows("Cancel the job (c)")
            copying.type(b"c\n")
            assert copying.wait() == 3


@pytest.fixture
def steered(box: DistributeBox) -> Iterator[DistributeBox]:
    """The box, whose queue is resumed in the end."""
    yield box
    box.call("POST", "/api/v2/queue/resume", {"kind": None})


def test_pause_and_resume(steered: DistributeBox, registry: Registry, mirrors: tuple[Registry, Registry]) -> None:
    """A paused kind starts nothing, and says why with every job; resumed it does what waited."""
    url = steered.daemon.url
    put_image(registry, "cli/paused", "1")
    paused = run(url, "pause", "distribute", "--reason", "the mirror moves")
    assert paused.code == 0, paused.err
    row = next(line for line in run(url, "queue").out.splitlines() if line.startswith("distribute\t"))
    assert "the mirror moves" in row
    job = run(url, "copy", f"{registry.host}/cli/paused:1", mirrors[0].host, "--no-wait").out.strip()
    assert "paused: the mirror moves" in run(url, "jobs", "--state", "queued", "--state", "running").out
    assert json.loads(run(url, "queue", "--json").out)["kinds"]["distribute"]["queued"] == 1
    assert run(url, "wait", job, "--timeout", "0").code == 5
    assert run(url, "resume").code == 0
    assert run(url, "wait", job).code == 0


def test_retry_of_all(steered: DistributeBox, registry: Registry, mirrors: tuple[Registry, Registry]) -> None:
    """All that failed with a code since a while are tried again, each once."""
    url = steered.daemon.url
    failed = run(
        url, "copy", f"{registry.host}/cli/late:1", mirrors[0].host, "--label", "cli=late", "--no-wait", "--key", "late"
    ).out.strip()
    steered.failed(failed)
    put_image(registry, "cli/late", "1")
    chosen = ("retry", "--all", "--state", "failed", "--since", "1h", "--label", "cli=late")
    retried = run(url, *chosen)
    assert retried.code == 0, retried.err
    job = retried.out.split()[0]
    assert retried.out == f"{job} instead of {failed}\n"
    assert run(url, "wait", job).code == 0
    assert run(url, *chosen).out == ""
