"""Two tenants on one daemon: no API shows, serves or stops what is another's."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from harness.base_image import BUSYBOX
from harness.bodies import dockerfile
from harness.client import Client, stopped_after_s
from harness.dispatch_box import ADMIN, DispatchBox, Tenant
from harness.engine import PrivateEngine

PROMISED_S = 2.0
SECRET_WORDS = "words of the first tenant"


class Owned(NamedTuple):
    """Jobs of the first tenant: each a row number and a UUID."""

    dispatched: tuple[str, str]
    ran: tuple[str, str]
    built: tuple[str, str]


@pytest.fixture(scope="module")
def guarded(engine: PrivateEngine) -> Iterator[DispatchBox]:
    """A box of which these tests may count the jobs."""
    with DispatchBox(engine, limits={"retry_for_s": 0.0}) as made:
        yield made
        made.check_healthy()


@pytest.fixture(scope="module")
def owned(guarded: DispatchBox) -> Owned:
    """A job of each kind with an engine, ended."""
    first = guarded.tenant(1)
    specs = {
        "run": {"dockerfile": f"FROM {BUSYBOX}\nCMD echo {SECRET_WORDS}; echo '{{\"perf\": 1}}' > /data/perf.json\n"},
        "build": {"dockerfile": f"FROM {BUSYBOX}\n", "image": "127.0.0.1:9/nobody/there"},
    }
    dispatched = first.dispatch(dockerfile(f"RUN echo {SECRET_WORDS}"))
    others = [first.call("POST", "/api/v2/jobs", {"kind": kind, "spec": spec}).json for kind, spec in specs.items()]
    pairs = [(str(job["number"]), job["id"]) for job in (first.job(dispatched), *others)]
    for _, uuid in pairs:
        first.ended(uuid)
    assert SECRET_WORDS in first.log(dispatched)
    return Owned(*pairs)


def stranger(guarded: DispatchBox, who: str) -> Client:
    return Client(guarded.daemon) if who == "nobody" else guarded.tenant(2)


NATIVE = ("/api/v2/jobs/{}", "/api/v2/jobs/{}/log", "/api/v2/jobs/{}/log?follow=1", "/api/v2/jobs/{}/events")


@pytest.mark.parametrize("who", ["another tenant", "nobody"])
def test_native_api(guarded: DispatchBox, owned: Owned, who: str) -> None:
    """Another tenant's job is not found, by number or UUID, and answered as one that never was."""
    client = stranger(guarded, who)
    for name in (name for pair in owned for name in pair):
        answers = [client.call("GET", path.format(name)) for path in NATIVE]
        answers.append(client.call("POST", f"/api/v2/jobs/{name}/cancel"))
        for answer in answers:
            assert answer.status == 404, answer.text
            assert SECRET_WORDS not in answer.text
    unknown = client.call("GET", "/api/v2/jobs/999999").text
    assert client.call("GET", f"/api/v2/jobs/{owned.ran[0]}").text == unknown.replace("999999", owned.ran[0])
    assert client.call("GET", "/api/v2/jobs?limit=500").json["jobs"] == []
    assert client.call("GET", "/api/v2/jobs?tenant=1").json["jobs"] == []
    assert client.call("GET", "/api/v2/jobs?kind=run&state=succeeded").json["jobs"] == []


@pytest.mark.parametrize("who", ["another tenant", "nobody"])
def test_older_apis(guarded: DispatchBox, owned: Owned, who: str) -> None:
    """The run, builder and distribute APIs know nothing of it either."""
    client = stranger(guarded, who)
    for _, uuid in owned:
        for path in (
            f"/status?id={uuid}",
            f"/api/v1/{uuid}/status",
            f"/api/v1/{uuid}/logs",
            f"/api/distribute/image/{uuid}",
        ):
            answer = client.call("GET", path)
            assert answer.status == 404, (path, answer.text)
            assert SECRET_WORDS not in answer.text


def test_dispatcher_api(guarded: DispatchBox, owned: Owned) -> None:
    """Job, status and image are 404 in the dispatcher's own words, as for an id that never was."""
    second = guarded.tenant(2)
    number = owned.dispatched[0]
    for method in ("GET", "HEAD"):
        for path in (f"/api/v1/job/{number}", f"/api/v1/job/{number}/status", f"/images/{number}"):
            answer = second.call(method, path, headers={"Range": "bytes=0-9"})
            assert answer.status == 404
            if method == "GET":
                error = {"code": 0, "details": "error during getting job", "error": f"no job with id: {number}"}
                assert answer.json == error
    assert guarded.tenant(1).status(number) == "SUCCESS"


def test_without_a_token(guarded: DispatchBox, owned: Owned) -> None:
    """The dispatcher insists on a token, before it reads anything."""
    nobody = Client(guarded.daemon)
    for path in (f"/api/v1/job/{owned.dispatched[0]}", f"/images/{owned.dispatched[0]}"):
        answer = nobody.call("GET", path)
        assert (answer.status, answer.json["code"], answer.json["details"]) == (401, 2, "JWT is invalid")
    assert nobody.call("POST", "/api/v1/job", b"not even JSON").status == 401
    assert nobody.call("GET", "/ping").text == "pong\n"


def test_clients_of_a_tenant_share(guarded: DispatchBox, owned: Owned) -> None:
    """Another client of the same tenant sees the job, with the client that made it."""
    colleague = guarded.tenant(1, oid=99)
    assert colleague.shown(owned.dispatched[0])["client_id"] == 1
    assert colleague.call("GET", f"/images/{owned.dispatched[0]}").status == 200


def test_admin_sees_all(guarded: DispatchBox, owned: Owned) -> None:
    """A configured subject sees every tenant's jobs."""
    admin = guarded.tenant(7, sub=ADMIN)
    assert {job["id"] for job in admin.call("GET", "/api/v2/jobs").json["jobs"]} >= {uuid for _, uuid in owned}
    assert SECRET_WORDS in admin.log(owned.dispatched[1])
    assert admin.shown(owned.dispatched[0])["tenant_id"] == 1


def test_cancel_is_the_tenants_own(guarded: DispatchBox) -> None:
    """A running job goes on though another tenant cancels it, and stops when its own does."""
    first, second = guarded.tenant(1), guarded.tenant(2)
    job = first.dispatch(dockerfile("RUN echo started && sleep 60"))
    first.prints(job, "started")
    assert second.cancel(job) == 404
    assert first.status(job) == "RUNNING"
    assert first.cancel(job) == 202
    ended = first.ended(job)
    assert ended["state"] == "cancelled"
    assert stopped_after_s(ended) < PROMISED_S
    assert first.status(job) == "FAILED"
    guarded.check_gone(first.job(job)["id"])


def test_same_payload_of_two_tenants(guarded: DispatchBox) -> None:
    """The same bytes from two tenants are two jobs; neither learns of the other."""
    payload = b"the same bytes" * 5000
    jobs: list[tuple[Tenant, str]] = []
    for number in (1, 2):
        tenant = guarded.tenant(number)
        jobs.append((tenant, tenant.dispatch(payload)))
    assert [tenant.image(job) for tenant, job in jobs if tenant.done(job)] == [payload, payload]
    assert jobs[0][1] != jobs[1][1]
    assert jobs[1][0].call("GET", f"/images/{jobs[0][1]}").status == 404


def test_same_idempotency_key_of_two_tenants(guarded: DispatchBox) -> None:
    """A key that another tenant has used is a new one: nobody is handed a job that is not theirs."""
    body = {"kind": "run", "spec": {"dockerfile": "FROM scratch\n"}, "not_before": "2999-01-01T00:00:00Z"}
    answers = [
        client.call("POST", "/api/v2/jobs", body, headers={"Idempotency-Key": "the same"})
        for client in (guarded.tenant(1), guarded.tenant(2), Client(guarded.daemon), guarded.tenant(1))
    ]
    assert [answer.status for answer in answers] == [201, 201, 201, 200]
    first, second, nobodys, again = (answer.json for answer in answers)
    assert len({job["id"] for job in (first, second, nobodys)}) == 3
    assert again["id"] == first["id"]
    assert [job["tenant"] for job in (first, second, nobodys)] == ["1", "2", "local"]


def test_a_tenant_wins_a_slot_with_the_next_job_that_ends(engine: PrivateEngine) -> None:
    """A tenant that holds every slot, and has more to do, gives one up to who comes later with its first job that ends;
    then each has its share."""
    with DispatchBox(engine, limits={"dispatch": 2}) as box:
        first, late = box.tenant(1), box.tenant(2)
        slow = "RUN echo {}-{} && sleep 2"
        held = [first.dispatch(dockerfile(slow.format("first", number))) for number in range(6)]
        for job in held[:2]:
            first.prints(job, "sleep 2")
        own = [late.dispatch(dockerfile(slow.format("late", number))) for number in range(2)]
        for tenant, jobs in ((first, held), (late, own)):
            for job in jobs:
                tenant.done(job)
        order = [tenant for (tenant,) in box.daemon.sqlite("select tenant from job order by started_ms, id")]
        names = [tenant for (tenant,) in box.daemon.sqlite("select distinct tenant from job order by id")]
        assert len(names) == 2
        assert order[:4].count(names[1]) >= 1
        assert order[:6].count(names[1]) == 2
        box.check_healthy()
