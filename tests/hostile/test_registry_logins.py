"""The operator's registry logins are for whom he names: tried by four callers in every way that there is to use one."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest

from harness.base_image import BUSYBOX, publish_busybox
from harness.client import Answer, Client, Fields
from harness.dispatch_box import ADMIN, DispatchBox
from harness.engine import PrivateEngine
from harness.images import put_image
from harness.registry import PASSWORD, USERNAME, Registry
from harness.services import require
from harness.token_server import TokenServer

NOT_FOR_YOU = "no login is configured for you"
# `guarded` has a login without `tenants`; the other two are lent to tenant 1.
MAY_USE = {"guarded": ("local", "admin"), "tokens": ("one", "admin"), "certificates": ("one", "admin")}
CALLERS = ("local", "one", "two", "admin")
# Each registry with each caller. Who may comes first: what his login brought in must not serve the others.
CASES = [(name, who) for name, may in MAY_USE.items() for who in sorted(CALLERS, key=lambda who: who not in may)]
BY_ENGINE = [case for case in CASES if case[0] != "certificates"]


class Place(NamedTuple):
    """The box and its registries: an open one, and three that let in with a login or certificate only."""

    box: DispatchBox
    open: Registry
    guarded: Registry
    tokens: Registry
    certificates: Registry
    issuer: TokenServer

    def caller(self, who: str) -> Client:
        if who == "local":
            return Client(self.box.daemon)
        return self.box.tenant({"one": 1, "two": 2, "admin": 7}[who], **({"sub": ADMIN} if who == "admin" else {}))

    def registry(self, name: str) -> Registry:
        found: Registry = getattr(self, name)
        return found


@pytest.fixture(scope="module")
def place(engine: PrivateEngine) -> Iterator[Place]:
    require("docker-registry")
    with ExitStack() as stack:
        issuer = stack.enter_context(TokenServer())
        everybodys = stack.enter_context(Registry())
        guarded = stack.enter_context(Registry(htpasswd=True))
        tokens = stack.enter_context(Registry(tokens=issuer))
        certificates = stack.enter_context(Registry(use_tls=True, asks_certificates=True))
        box = stack.enter_context(
            DispatchBox(
                engine,
                registry=tables(everybodys, guarded, tokens, certificates),
                kinds={"dispatch": {"repository": f"{guarded.host}/dispatched"}},
            )
        )
        yield Place(box, everybodys, guarded, tokens, certificates, issuer)
        box.check_healthy()


def tables(everybodys: Registry, guarded: Registry, tokens: Registry, certificates: Registry) -> Fields:
    """`[registry]`. What the open registry has is asked of the one with tokens first."""
    certificate = certificates.certificate
    assert certificate is not None
    password = guarded.folder / "password"
    password.write_text(PASSWORD)
    login = {"username": USERNAME, "password_file": str(password)}
    shown = {
        "ca_file": str(certificate.ca_file),
        "cert_file": str(certificate.certificate_file),
        "key_file": str(certificate.key_file),
    }
    lent = {"tenants": ["1"]}
    return {
        everybodys.host: {"mirrors": [tokens.host]},
        guarded.host: login,
        tokens.host: login | lent,
        certificates.host: shown | lent,
    }


def submit(caller: Client, kind: str, **spec: Any) -> Answer:
    return caller.call("POST", "/api/v2/jobs", {"kind": kind, "spec": spec})


def check(caller: Client, answer: Answer, *, may: bool) -> None:
    """A job that succeeds, or one that is refused, at once or later, for want of a login, and tells nothing of it."""
    if answer.status != 201:
        assert not may, answer.text
        assert answer.status in (400, 403), answer.text
        said = answer.text
    elif may:
        caller.succeeded(answer.json["id"])
        return
    else:
        job = caller.ended(answer.json["id"])
        assert job["state"] == "failed"
        assert job["attempt"] == 1
        said = f"{job['error']} {caller.log(job['id'])}"
    assert NOT_FOR_YOU in said
    assert PASSWORD not in said
    assert USERNAME not in said.replace(f"/{USERNAME}", "")


@pytest.fixture(scope="module")
def bases(engine: PrivateEngine, place: Place) -> dict[str, str]:
    """The base image in the registries that the engine logs in to."""
    return {name: publish_busybox(engine, place.registry(name), "team/base", "1") for name in ("guarded", "tokens")}


@pytest.mark.parametrize(("name", "who"), BY_ENGINE)
def test_a_private_base(place: Place, bases: dict[str, str], name: str, who: str) -> None:
    """Nobody builds on an image that he has no login for, also not after somebody else did."""
    caller = place.caller(who)
    dockerfile = f"FROM {bases[name]}\nRUN echo {who}\n"
    answer = submit(caller, "build", dockerfile=dockerfile, image=f"{place.open.host}/bases/{name}-{who}:1")
    check(caller, answer, may=who in MAY_USE[name])


@pytest.mark.parametrize("who", ["one", "admin"])
def test_a_private_base_of_a_run(place: Place, bases: dict[str, str], who: str) -> None:
    """Runs build with the same rights."""
    caller = place.caller(who)
    dockerfile = f"FROM {bases['guarded']}\nCMD echo '{{\"perf\": 1}}' > /data/perf.json\n"
    check(caller, submit(caller, "run", dockerfile=dockerfile), may=who in MAY_USE["guarded"])


@pytest.mark.parametrize(("name", "who"), BY_ENGINE)
def test_a_push(place: Place, name: str, who: str) -> None:
    """Nobody pushes where he has no login; with one of his own everybody does."""
    registry, caller = place.registry(name), place.caller(who)
    image = f"{registry.host}/pushed/{who}:1"
    dockerfile = f"FROM {BUSYBOX}\nRUN echo {name} {who}\n"
    may = who in MAY_USE[name]
    check(caller, submit(caller, "build", dockerfile=dockerfile, image=image), may=may)
    assert (registry.digest(f"pushed/{who}", "1") is not None) is may
    own = {"username": USERNAME, "password": PASSWORD}
    check(caller, submit(caller, "build", dockerfile=dockerfile, image=image, **own), may=True)


@pytest.mark.parametrize(("name", "who"), CASES)
def test_a_source(place: Place, name: str, who: str) -> None:
    """Nobody distributes what he could not read: the submission is refused, and so is the job that could not be asked
    about beforehand."""
    registry, caller = place.registry(name), place.caller(who)
    image = put_image(registry, "team/source", "1", seed=name)
    may = who in MAY_USE[name]
    source, target = {"endpoint": registry.host}, {"endpoint": place.open.host}
    for number, wanted in enumerate(({"image": "team/source", "ref": "1"}, {"images": ["team/source:1"]})):
        path = f"copies/{name}-{who}-{number}"
        answer = submit(caller, "distribute", source=source | wanted, targets=[target | {"image": path}])
        assert (answer.status == 201) is (may or number == 1)
        check(caller, answer, may=may)
        assert place.open.digest(path, "1") == (image.digest if may else None)


@pytest.mark.parametrize(("name", "who"), CASES)
def test_a_target(place: Place, name: str, who: str) -> None:
    """Nobody distributes to where he could not write."""
    registry, caller = place.registry(name), place.caller(who)
    image = put_image(place.open, "public/app", "1")
    source = {"endpoint": place.open.host, "image": "public/app", "ref": "1"}
    target = {"endpoint": registry.host, "image": f"given/{who}"}
    may = who in MAY_USE[name]
    check(caller, submit(caller, "distribute", source=source, targets=[target]), may=may)
    assert registry.digest(f"given/{who}", "1") == (image.digest if may else None)


@pytest.mark.parametrize("weaker", [{"verify_tls": False}, {"verify_tls": True}])
def test_a_certificate_is_not_got_by_other_trust(place: Place, weaker: Fields) -> None:
    """A request that says how it trusts the registry is shown no certificate for it either."""
    put_image(place.certificates, "team/trust", "1")
    caller = place.caller("two")
    source = {"endpoint": place.certificates.host, "image": "team/trust", "ref": "1"} | weaker
    check(caller, submit(caller, "distribute", source=source, targets=[{"endpoint": place.open.host}]), may=False)


@pytest.mark.parametrize(("who", "may"), [("one", True), ("two", False)])
def test_a_mirror(place: Place, registry: Registry, who: str, may: bool) -> None:
    """A mirror is asked with its login for who may use that, and without for all others."""
    image = put_image(place.open, "public/mirrored", "1", seed=who)
    put_image(place.tokens, "public/mirrored", "1", seed=who)
    caller = place.caller(who)
    place.issuer.requests.clear()
    source = {"endpoint": place.open.host, "image": "public/mirrored", "ref": "1"}
    target = {"endpoint": registry.host, "image": f"from-mirror/{who}"}
    check(caller, submit(caller, "distribute", source=source, targets=[target]), may=True)
    assert registry.digest(f"from-mirror/{who}", "1") == image.digest
    asked = {request.user for request in place.issuer.requests if "mirrored" in " ".join(request.scopes)}
    assert asked == ({USERNAME} if may else {""})


@pytest.mark.parametrize("who", ["one", "two", "admin"])
def test_what_the_operator_orders(place: Place, who: str) -> None:
    """Everybody's payloads are pushed to the operator's repository with his login."""
    caller = place.caller(who)
    job = caller.dispatch(f"FROM {BUSYBOX}\nRUN echo dispatched by {who}\n".encode())  # type: ignore[attr-defined]
    done = caller.ended(job)
    assert done["state"] == "succeeded", done["error"]
    host, _, name = done["result"]["image"].partition("/")
    assert host == place.guarded.host
    path, _, tag = name.rpartition(":")
    assert place.guarded.digest(path, tag) == done["result"]["digest"]


def test_a_payload_has_its_tenants_rights(engine: PrivateEngine, place: Place) -> None:
    """That the operator pushes there does not let a payload build on what he has there."""
    base = publish_busybox(engine, place.guarded, "dispatched/base", "1")
    caller = place.caller("two")
    job = caller.dispatch(f"FROM {base}\n".encode())  # type: ignore[attr-defined]
    error = caller.ended(job)["error"]
    assert NOT_FOR_YOU in error["message"]


@pytest.mark.parametrize(
    ("who", "change"),
    [("one", ('"tenants" = ["1"]', '"tenants" = []')), ("admin", (f'["{ADMIN}"]', "[]"))],
)
def test_rights_that_were_taken_away(
    engine: PrivateEngine, private_registry: Registry, who: str, change: tuple[str, str]
) -> None:
    """What a restart takes from a tenant or an admin is gone for jobs that were submitted before, too."""
    password = private_registry.folder / "password"
    password.write_text(PASSWORD)
    table = {"username": USERNAME, "password_file": str(password), "tenants": ["1"]}
    box = DispatchBox(engine, registry={private_registry.host: table})
    with ExitStack() as stack:
        stack.callback(box.daemon.remove)
        box.daemon.start(failpoints="before_push")
        caller = box.tenant(1) if who == "one" else box.tenant(7, sub=ADMIN)
        image = f"{private_registry.host}/taken/{who}:1"
        job = submit(caller, "build", dockerfile=f"FROM {BUSYBOX}\n", image=image).json["id"]
        assert box.daemon.wait(timeout_s=60) == 137
        text = box.daemon.config_file.read_text()
        assert change[0] in text
        box.daemon.config_file.write_text(text.replace(*change))
        box.daemon.start()
        assert NOT_FOR_YOU in caller.ended(job)["error"]["message"]
        assert private_registry.digest(f"taken/{who}", "1") is None
