"""Restarts as an operator does them: nobody who sends a job to the socket's port is refused, and every job is done."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest
from machine import PORT, REGISTRY, Client, Machine

from harness.base_image import BUSYBOX
from harness.waiting import until

TIMEOUT_S = 60.0
RESTARTS = 8
PAUSE_S = 0.5


@pytest.fixture
def image(machine: Machine) -> str:
    """An image in the machine's registry."""
    machine.docker("tag", BUSYBOX, f"{REGISTRY}/restart/base:1")
    machine.docker("push", f"{REGISTRY}/restart/base:1")
    return "restart/base"


def copy(machine: Machine, image: str, client: Client | None) -> str:
    """A job that takes a moment: most is there already."""
    source = {"endpoint": f"http://{REGISTRY}", "image": image, "ref": "1"}
    target = source | {"image": "restart/copy", "overwrite": True}
    return machine.submit("distribute", client, source=source, targets=[target])


@contextmanager
def submitting(machine: Machine, image: str) -> Iterator[list[str]]:
    """While clients submit jobs one after the other; the jobs that were accepted. One client keeps its connection, the
    others have one for each job.

    Any answer but an acceptance, and any connection that ends without one, fails the test.
    """
    enough = threading.Event()
    accepted: list[str] = []

    def submit(client: Client | None) -> None:
        while not enough.wait(PAUSE_S):
            accepted.append(copy(machine, image, client))

    with ThreadPoolExecutor() as threads, closing(Client(machine)) as keeping:
        clients = [threads.submit(submit, client) for client in (keeping, None, None, None)]
        try:
            yield accepted
        finally:
            enough.set()
    for done in clients:
        done.result()


def test_restarts_under_load(machine: Machine, image: str) -> None:
    """Of the jobs sent while the daemon restarts eight times none is refused and none is lost."""
    machine.configure(config="[server]\ndrain_timeout_s = 0.5\n")
    slow = machine.build("restart/slow:1", "RUN sleep 3")
    with submitting(machine, image) as accepted:
        for _ in range(RESTARTS):
            machine.systemctl("restart", "imagejobd.service")
    assert len(accepted) > RESTARTS
    [job] = machine.succeeded(slow)
    until(
        lambda: machine.listed(state="queued") + machine.listed(state="running") == [],
        timeout_s=TIMEOUT_S,
        what="the end",
    )
    states = {job["id"]: job["state"] for job in machine.listed()}
    assert {states[uuid] for uuid in accepted} == {"succeeded"}
    assert (job["attempt"], job["crashes"]) == (1, 0)


def test_drain(machine: Machine) -> None:
    """While the unit stops, what runs is finished, jobs are taken for the next life, and an upload has time to end."""
    running = machine.build("restart/running:1", "RUN echo begun && sleep 3")
    machine.prints(running, "begun")
    body = b'{"image_name": "%s/restart/late:1", "dockerfile": "FROM %s"}' % (REGISTRY.encode(), BUSYBOX.encode())
    head = b"POST /api/v1/build HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    with machine.connection(PORT) as upload:
        upload.sendall(head + body[:10])
        machine.systemctl("stop", "--no-block", "imagejobd.service")
        until(lambda: machine.call("GET", "/readyz").status == 503, timeout_s=TIMEOUT_S, what="the drain to begin")
        taken = machine.build("restart/taken:1")
        assert machine.show("ActiveState") == "deactivating"
        # The daemon may not accept connections any more.
        machine.logged("job ended", running)
        upload.sendall(body[10:])
        answer = upload.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    until(lambda: machine.show("ActiveState") == "inactive", timeout_s=TIMEOUT_S, what="the stop")
    machine.systemctl("start", "imagejobd.service")
    [job, *_] = machine.succeeded(running, taken)
    assert job["attempt"] == 1
