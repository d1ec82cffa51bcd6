"""What a distribution may ask for, and what of it is stored in clear."""

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagejobd.jobs.distribute.auth import login
from imagejobd.jobs.distribute.fields import FieldFault
from imagejobd.jobs.distribute.spec import DistributeSpec, Place, parse, site_of
from imagejobd.model.errors import ErrorCode
from imagejobd.model.kind import Accepted
from imagejobd.model.secrets import Credentials, Secret
from imagejobd.registry.hosts import ReadyToken, RegistryTarget, TokenRequest

DIGEST = "sha256:" + "0" * 64
SOURCE = {"endpoint": "https://a.example/v2/", "image": "team/app", "ref": "1.0"}
TARGET = {"endpoint": "b.example:5000"}
MINIMAL = {"source": SOURCE, "targets": [TARGET]}


def with_source(**changes: Any) -> dict[str, Any]:
    fields = {"endpoint": SOURCE["endpoint"]} if "images" in changes else SOURCE
    return {**MINIMAL, "source": {**fields, **changes}}


def with_target(**changes: Any) -> dict[str, Any]:
    return {**MINIMAL, "targets": [{**TARGET, **changes}]}


def again(**changes: Any) -> dict[str, Any]:
    """The same target twice, the second time with `changes`."""
    return {**MINIMAL, "targets": [TARGET, {**TARGET, **changes}]}


def refusal(spec: Any) -> FieldFault:
    with pytest.raises(FieldFault) as refused:
        parse(spec)
    return refused.value


def stored(accepted: Accepted) -> DistributeSpec:
    """The stored spec as the job reads it back, after its way through JSON."""
    return msgspec.json.decode(msgspec.json.encode(accepted.spec), type=DistributeSpec)


def test_minimal_spec() -> None:
    """A source and a target are enough; endpoints are kept as they were sent, and what was not given is not stored."""
    accepted = parse(MINIMAL)
    assert accepted.spec == {
        "source": SOURCE,
        "targets": [{**TARGET, "overwrite": False}],
        "referrers": False,
        "dry_run": False,
    }
    assert accepted.secrets == {}
    assert stored(accepted) == msgspec.convert(accepted.spec, DistributeSpec)


def test_sites() -> None:
    """The endpoint says host and scheme; trust and login come with it."""
    spec = stored(parse(with_target(verify_tls=False)))
    source = site_of(spec.source, None)
    assert source == RegistryTarget(host="a.example", scheme="https", login_hint=source.login_hint)
    target = site_of(spec.targets[0], None)
    assert target == RegistryTarget(host="b.example:5000", verify_tls=False, login_hint=target.login_hint)
    assert "source.auth.basicauth" in source.login_hint
    assert "targets[].auth.basicauth" in target.login_hint


@pytest.mark.parametrize(
    ("endpoint", "host", "scheme"),
    [
        ("registry", "registry", None),
        ("Registry.Example:5000/", "registry.example:5000", None),
        ("http://127.0.0.1:5001/v2", "127.0.0.1:5001", "http"),
        ("HTTPS://r.example/v2/", "r.example", "https"),
        ("https://[::1]:5000", "[::1]:5000", "https"),
        ("https://registry-1.docker.io/v2/", "docker.io", "https"),
        ("docker.io", "docker.io", None),
    ],
)
def test_endpoints(endpoint: str, host: str, scheme: str | None) -> None:
    """With and without scheme, port, /v2 and a final slash."""
    accepted = parse(with_target(endpoint=endpoint))
    assert accepted.spec["targets"][0]["endpoint"] == endpoint
    site = site_of(stored(accepted).targets[0], None)
    assert (site.host, site.scheme) == (host, scheme)


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        " r.example",
        "ftp://r.example",
        "https://me:s3cret@r.example",
        "me:s3cret@r.example",
        "r.example?token=s3cret",
        "r.example#x",
        "r.example/team",
        "https://r.example/v2/team",
        "r.example/v1",
        "r.example:0",
        "r.example:65536",
        "r.example:",
        "-r.example",
        "r..example",
        "[::1",
        "[1:2]:5000",
        "r.example\r\nHost: x",
        "r.example\n",
        "１.example",
        "x" * 5000,
    ],
)
def test_endpoints_that_are_none(endpoint: str) -> None:
    """Anything else is refused by the field's name, and never quoted: it may hold a password."""
    fault = refusal(with_target(endpoint=endpoint))
    assert (fault.field, fault.is_missing) == ("targets[0].endpoint", False)
    assert "s3cret" not in fault.message
    assert len(fault.message) < 300


@pytest.mark.parametrize(
    ("spec", "places"),
    [
        (MINIMAL, [Place("team/app", ("1.0",))]),
        (with_source(ref=DIGEST), [Place("team/app", (DIGEST,))]),
        (with_target(image="x", ref="2"), [Place("x", ("2",))]),
        (with_target(tags=["2", "latest", "2"]), [Place("team/app", ("2", "latest"))]),
        (with_source(images=["a:1", f"b/c@{DIGEST}"]), [Place("a", ("1",)), Place("b/c", (DIGEST,))]),
        ({**with_source(images=["a:1", "a:2"]), "targets": [{**TARGET, "image": "z"}]},
         [Place("z", ("1",)), Place("z", ("2",))]),
        (with_target(endpoint="docker.io", image="busybox"), [Place("library/busybox", ("1.0",))]),
    ],
)  # fmt: skip
def test_places(spec: dict[str, Any], places: list[Place]) -> None:
    """Each image goes under its own name, unless the target gives it another."""
    parsed = stored(parse(spec))
    assert parsed.targets[0].places(parsed.source.listed) == places


def test_a_repository_with_a_filter_lists_nothing_yet() -> None:
    """Which tags a filter means is known when the job runs."""
    spec = {**MINIMAL, "source": {"endpoint": "a", "image": "app", "tags": {"semver": "^1", "newest": 3}}}
    parsed = stored(parse(spec))
    assert (parsed.source.listed, parsed.source.repository) == ((), "app")


def test_words_for_booleans_and_null() -> None:
    """Words and numbers that mean a boolean are one; null means that nothing was said."""
    spec = {
        "source": {**SOURCE, "verify_tls": "no", "auth": None, "images": None},
        "targets": [{**TARGET, "overwrite": 1, "verify_tls": None, "auth": {}}],
        "dry_run": "TRUE",
        "referrers": None,
    }
    parsed = stored(parse(spec))
    assert (parsed.source.verify_tls, parsed.targets[0].overwrite, parsed.targets[0].verify_tls) == (False, True, None)
    assert (parsed.dry_run, parsed.referrers) == (True, False)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({}, "source"),
        ({"source": SOURCE}, "targets"),
        ({**MINIMAL, "source": {"image": "a", "ref": "1"}}, "source.endpoint"),
        ({**MINIMAL, "source": {"endpoint": "a", "image": "app"}}, "source.ref"),
        ({**MINIMAL, "source": {"endpoint": "a", "ref": "1"}}, "source.image"),
        ({**MINIMAL, "targets": [TARGET, {}]}, "targets[1].endpoint"),
        (with_target(auth={"header": {"A": "b"}}), "targets[0].auth.url"),
        (with_target(auth={"basicauth": {"user": "x"}}), "targets[0].auth.basicauth.password"),
    ],
)
def test_missing_fields(spec: dict[str, Any], field: str) -> None:
    """What is missing is told as missing, by its path and by its name."""
    fault = refusal(spec)
    assert (fault.field, fault.is_missing) == (field, True)
    assert fault.name == field.rpartition(".")[2]
    assert f"spec.{field}: missing" in fault.message


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({**MINIMAL, "foo": 1}, "foo"),
        (with_source(foo=1), "source.foo"),
        ({**MINIMAL, "targets": [TARGET, {**TARGET, "ov erwrite": True}]}, "targets[1].ov erwrite"),
        (with_source(auth={"password": "x"}), "source.auth.password"),
        (with_source(ref=None, tags={"regexp": "x"}), "source.tags.regexp"),
    ],
)
def test_unknown_fields(spec: dict[str, Any], field: str) -> None:
    """A misspelt field is not ignored."""
    fault = refusal(spec)
    assert (fault.field, fault.why) == (field, "unknown field")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ([], ["spec: ", "object"]),
        ({**MINIMAL, "source": "a"}, ["spec.source", "object"]),
        ({**MINIMAL, "targets": {}}, ["spec.targets", "array"]),
        ({**MINIMAL, "targets": ["b"]}, ["spec.targets[0]", "object"]),
        ({**MINIMAL, "targets": [{"endpoint": f"r{n}"} for n in range(101)]}, ["spec.targets", "100"]),
        (with_source(image="App"), ["spec.source.image", "repository"]),
        (with_source(image="app:1"), ["spec.source.image", "without registry, tag"]),
        (with_source(image="../app"), ["spec.source.image"]),
        (with_source(image="a" * 256), ["spec.source.image", "255"]),
        (with_source(image=7), ["spec.source.image", "str"]),
        (with_source(ref="bad tag"), ["spec.source.ref", "tag"]),
        (with_source(ref="sha256:abc"), ["spec.source.ref", "digest"]),
        (with_source(tags={"regex": "x"}), ["spec.source.tags", "ref"]),
        (with_source(images=["a:1"], image="a"), ["spec.source.image", "images"]),
        (with_source(images=["a"]), ["spec.source.images[0]", "path:tag"]),
        (with_source(images=["a:1", "A:1"]), ["spec.source.images[1]", "repository"]),
        (with_source(images=["a:1", "a:1"]), ["spec.source.images", "twice"]),
        (with_source(images=["a:1@" + DIGEST]), ["spec.source.images[0]"]),
        (with_source(images=[f"a:{n}" for n in range(1001)]), ["spec.source.images", "1000"]),
        (with_source(verify_tls="maybe"), ["spec.source.verify_tls", "bool"]),
        (with_source(ref=None, tags={}), ["spec.source.tags", "regex"]),
        (with_source(ref=None, tags={"regex": "("}), ["spec.source.tags.regex", "RE2"]),
        (with_source(ref=None, tags={"regex": "(?=x)"}), ["spec.source.tags.regex", "RE2"]),
        (with_source(ref=None, tags={"regex": "x" * 1001}), ["spec.source.tags.regex", "1000"]),
        (with_source(ref=None, tags={"regex": "((a{99}){99}){99}"}), ["spec.source.tags.regex", "RE2"]),
        (with_source(ref=None, tags={"semver": "newest"}), ["spec.source.tags.semver", "range"]),
        (with_source(ref=None, tags={"semver": " "}), ["spec.source.tags.semver", "range"]),
        (with_source(ref=None, tags={"newest": 0}), ["spec.source.tags.newest", "1 and 2000"]),
        (with_source(ref=None, tags={"newest": 2001}), ["spec.source.tags.newest", "2000"]),
        (with_target(ref="a", tags=["b"]), ["spec.targets[0].tags", "ref"]),
        (with_target(tags=["ok", "not ok"]), ["spec.targets[0].tags", "tag"]),
        (with_target(tags=[str(n) for n in range(21)]), ["spec.targets[0].tags", "20"]),
        (with_target(ref=DIGEST), ["spec.targets[0].ref", "must be a tag"]),
        ({**with_source(ref=DIGEST), "platforms": ["linux/amd64"]}, ["spec.targets[0].ref", "platforms"]),
        ({**with_source(images=["a:1", "b:1"]), "targets": [{**TARGET, "image": "c"}]}, ["targets[0].image", "one"]),
        ({**with_source(images=["a:1", "a:2"]), "targets": [{**TARGET, "ref": "c"}]}, ["targets[0].ref", "one"]),
        ({**with_source(ref=None, tags={"regex": "x"}), "targets": [{**TARGET, "tags": ["c"]}]}, ["[0].tags", "one"]),
        ({**MINIMAL, "platforms": ["linux"]}, ["spec.platforms[0]", "linux/arm/v7"]),
        ({**MINIMAL, "platforms": ["linux/amd64"] * 51}, ["spec.platforms", "50"]),
        (again(overwrite=True), ["targets[1]", "targets[0] named twice", "overwrite"]),
        (again(verify_tls=False), ["targets[1]", "twice"]),
        (again(auth={"basicauth": {"user": "me", "password": "p"}}), ["targets[1]", "twice"]),
        ({**MINIMAL, "targets": [{"endpoint": "http://b:1"}, {"endpoint": "https://b:1"}]}, ["targets[1]", "twice"]),
        ({**MINIMAL, "targets": [TARGET, {**TARGET, "tags": ["2", "1.0"]}]}, ["targets[1]", "twice"]),
        (with_target(endpoint="a.example"), ["targets[0]", "onto itself"]),
        (with_target(endpoint="a.example", tags=["2", "1.0"]), ["targets[0]", "onto itself"]),
        ({**with_source(ref=None, tags={"regex": ".*"}), "targets": [{"endpoint": "a.example"}]}, ["onto itself"]),
    ],
    ids=str,
)  # fmt: skip
def test_refusals_name_field_and_reason(spec: Any, words: list[str]) -> None:
    """Everything that cannot be copied is refused at submission, in words about the field."""
    fault = refusal(spec)
    assert fault.code is ErrorCode.INVALID
    for word in words:
        assert word in fault.message
    assert len(fault.message) < 500


@pytest.mark.parametrize(
    ("targets", "stored_endpoints"),
    [
        ([TARGET, TARGET, TARGET], ["b.example:5000"]),
        ([TARGET, {"endpoint": "c"}, {"endpoint": "B.example:5000/v2/"}], ["b.example:5000", "c"]),
        ([TARGET, {"endpoint": "https://b.example:5000"}, TARGET], ["https://b.example:5000"]),
        ([{"endpoint": "b"}, {"endpoint": "b:443"}], ["b"]),
        ([TARGET, {**TARGET, "image": "team/app", "ref": "1.0"}], ["b.example:5000"]),
        ([{**TARGET, "tags": ["1", "2"]}, {**TARGET, "tags": ["2", "1", "2"]}], ["b.example:5000"]),
        ([TARGET, {**TARGET, "ref": "2"}, {**TARGET, "image": "x"}], ["b.example:5000"] * 3),
        ([], []),
    ],
)
def test_a_target_that_is_named_twice_counts_once(targets: list[Any], stored_endpoints: list[str]) -> None:
    """The same registry, repository and tags however they are written; of two the one that names a scheme."""
    assert [target.endpoint for target in stored(parse({**MINIMAL, "targets": targets})).targets] == stored_endpoints


def test_logins_stay_with_their_targets() -> None:
    """A target that counts no more does not shift the logins of those behind it."""
    auths = [{"basicauth": {"user": "me", "password": f"passw0rd-{n}"}} for n in range(2)]
    first, other = {**TARGET, "auth": auths[0]}, {"endpoint": "c", "auth": auths[1]}
    accepted = parse({**MINIMAL, "targets": [first, first, other]})
    assert accepted.secrets.keys() == {"auth.target.0", "auth.target.1"}
    assert "passw0rd-1" in accepted.secrets["auth.target.1"].reveal()


def test_one_repository_may_take_other_names() -> None:
    """The same registry is fine as a target under another tag, repository or port."""
    for changes in (
        {"tags": ["2"]},
        {"image": "other"},
        {"endpoint": "a.example:5000"},
        {"endpoint": "http://a.example"},
    ):
        assert parse(with_target(**{"endpoint": "a.example", **changes}))


def test_the_number_of_copies_is_bounded() -> None:
    """Images times targets may not exceed the configured bound."""
    spec = {
        "source": {"endpoint": "a", "images": [f"a:{n}" for n in range(21)]},
        "targets": [{"endpoint": f"r{n}"} for n in range(100)],
    }
    assert "copies_max = 2000" in refusal(spec).message
    assert parse(spec, copies_max=2100)


def test_the_largest_spec_is_checked_quickly() -> None:
    """The door is on the event loop: the largest spec that is taken must not hold up the others for long."""
    spec = {
        "source": {"endpoint": "a", "images": [f"team/app{n}:1" for n in range(1000)]},
        "targets": [{"endpoint": f"r{n}"} for n in range(2)],
    }
    started = time.thread_time()
    parse(spec)
    assert time.thread_time() - started < 0.5


AUTH = {
    "url": "https://auth.example/token?key=qu3rysecret",
    "token_type": "JWT",
    "header": '{"Authorization": "Basic aGVhZGVyc2VjcmV0"}',
    "json": {"user": {"password": "b0dysecret"}, "scopes": ["push"]},
}


def test_secrets_are_parted_from_the_spec() -> None:
    """Each auth block is one secret; neither the stored spec nor any repr has a word of it."""
    basic = {"user": "me", "password": "s3cret-basic"}
    spec = {
        "source": {**SOURCE, "auth": AUTH},
        "targets": [TARGET, {"endpoint": "c.example", "auth": {"basicauth": basic}}],
    }
    accepted = parse(spec)
    assert accepted.secrets.keys() == {"auth.source", "auth.target.1"}
    source = site_of(stored(accepted).source, accepted.secrets["auth.source"])
    shown = repr(accepted) + json.dumps(accepted.spec) + repr(source)
    for word in ("qu3rysecret", "aGVhZGVy", "b0dysecret", "s3cret-basic", "auth.example"):
        assert word not in shown
    assert "auth" not in json.dumps(accepted.spec)
    source_login = source.login
    assert isinstance(source_login, TokenRequest)
    assert (source_login.url.reveal(), source_login.token_type) == (AUTH["url"], "JWT")
    assert source_login.headers["Authorization"].reveal() == "Basic aGVhZGVyc2VjcmV0"
    assert source_login.body is not None
    assert json.loads(source_login.body.reveal()) == AUTH["json"]
    target_login = login(accepted.secrets["auth.target.1"])
    assert isinstance(target_login, Credentials)
    assert (target_login.username, target_login.password.reveal()) == ("me", "s3cret-basic")


def test_the_number_of_secret_words_is_bounded() -> None:
    """Every word of an auth block costs time with every line that is logged; the same login everywhere costs once."""
    auth = {"url": "http://auth.example/", "json": {"keys": [f"key-{n}" for n in range(600)]}}
    other = {"url": "http://auth.example/", "json": {"keys": [f"other-{n}" for n in range(600)]}}
    targets = [{"endpoint": f"r{n}", "auth": auth} for n in range(50)]
    assert len(parse({**MINIMAL, "targets": targets}).secrets) == 50
    fault = refusal({**MINIMAL, "targets": [*targets, {"endpoint": "x", "auth": other}]})
    assert "auth blocks hold more than 1000" in fault.message


def test_basicauth_goes_before_the_token_setup() -> None:
    """With basicauth the rest is ignored."""
    for url in ("nonsense", "http://["):
        accepted = parse(with_source(auth={**AUTH, "url": url, "basicauth": {"user": "me", "password": "p"}}))
        assert isinstance(login(accepted.secrets["auth.source"]), Credentials)


def test_a_ready_token() -> None:
    """A token without a url is sent as it is; with one, or with basicauth, it is ignored as in the original."""
    accepted = parse(with_source(auth={"token": "r3ady", "token_type": "JWT"}))
    ready = login(accepted.secrets["auth.source"])
    assert ready == ReadyToken(token=Secret("r3ady"), token_type="JWT")
    assert "r3ady" not in repr(accepted) + repr(ready) + json.dumps(accepted.spec)
    [secret] = parse(with_source(auth={"token": "r3ady", "url": "http://auth.example/"})).secrets.values()
    assert isinstance(login(secret), TokenRequest)
    assert "r3ady" not in secret.reveal()
    [secret] = parse(with_source(auth={"token": "x y", "basicauth": {"user": "me", "password": "p"}})).secrets.values()
    assert isinstance(login(secret), Credentials)


@pytest.mark.parametrize("auth", [None, {}, {"url": None}, {"header": "", "json": "{}"}])
def test_no_auth(auth: Any) -> None:
    """An auth block that says nothing is none."""
    assert parse(with_source(auth=auth)).secrets == {}


@pytest.mark.parametrize(
    ("auth", "field"),
    [
        ("s3cret", "auth"),
        ({"url": "ftp://s3cret/"}, "auth.url"),
        ({"url": "https://me:s3cret@a/"}, "auth.url"),
        ({"url": "https:///s3cret"}, "auth.url"),
        ({"url": "https://a:99999/s3cret"}, "auth.url"),
        ({"url": "http://a/s3cret\r\nX: y"}, "auth.url"),
        ({"url": "http://a/" + "s3cret" * 1000}, "auth.url"),
        ({"url": "http://a/", "token_type": "s3cret\r\n"}, "auth.token_type"),
        ({"url": "http://a/", "token_type": ""}, "auth.token_type"),
        ({"token": "s3cret", "token_type": "s3cret\r\n"}, "auth.token_type"),
        ({"token": "s3cret\r\nX: y"}, "auth.token"),
        ({"token": "s3cret two"}, "auth.token"),
        ({"token": "s3cret" * 3000}, "auth.token"),
        ({"token": ["s3cret"]}, "auth.token"),
        ({"url": "http://a/", "header": "s3cret"}, "auth.header"),
        ({"url": "http://a/", "header": "[]"}, "auth.header"),
        ({"url": "http://a/", "header": {"A": "s3cret\r\nB: c"}}, "auth.header.A"),
        ({"url": "http://a/", "header": {"A": 1}}, "auth.header"),
        ({"url": "http://a/", "header": {"A: s3cret": ""}}, "auth.header"),
        ({"url": "http://a/", "header": {"Host": "s3cret"}}, "auth.header.Host"),
        ({"url": "http://a/", "header": {"transfer-encoding": "s3cret"}}, "auth.header.transfer-encoding"),
        ({"url": "http://a/", "header": {f"A{n}": "" for n in range(51)}}, "auth.header"),
        ({"url": "http://a/", "header": {"A": "s3cret" * 5000}}, "auth.header.A"),
        ({"url": "http://a/", "json": '"s3cret"'}, "auth.json"),
        ({"url": "http://a/", "json": '{"a": s3cret'}, "auth.json"),
        ({"url": "http://a/", "json": '{"a":' * 5000}, "auth.json"),
        ({"url": "http://a/", "json": {"a": "s3cret" * 30_000}}, "auth"),
        ({"url": "http://a/", "json": {"a": "\ud800"}}, "auth"),
        ({"basicauth": "me:s3cret"}, "auth.basicauth"),
        ({"basicauth": {"user": "a:s3cret", "password": "x"}}, "auth.basicauth.user"),
        ({"basicauth": {"user": "a", "password": ""}}, "auth.basicauth.password"),
        ({"basicauth": {"user": "a", "password": "s3cret\0"}}, "auth.basicauth.password"),
        ({"basicauth": {"user": "a\n", "password": "s3cret"}}, "auth.basicauth.user"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_auth_that_cannot_be_used(auth: Any, field: str) -> None:
    """A bad auth block is refused by its field; no message quotes it."""
    fault = refusal(with_source(auth=auth))
    assert fault.code is ErrorCode.INVALID
    assert f"source.{field}" in fault.field
    assert "s3cret" not in fault.message
    assert len(fault.message) < 500


WORDS = ["", "a", "a:1", "true", "sha256:", "http://", "1.0", "x" * 300, "é", "a\n", "{}", "[", "\ud800"]
LEAVES = st.none() | st.booleans() | st.integers(-1, 9999) | st.sampled_from(WORDS)
KEYS = st.sampled_from(["endpoint", "image", "regex", "url", "user", "a`b", ""])
HOSTILE = LEAVES | st.lists(LEAVES, max_size=2) | st.dictionaries(KEYS, LEAVES, max_size=2)
AUTHS = st.fixed_dictionaries({}, optional=dict.fromkeys(("url", "header", "json", "basicauth"), HOSTILE)) | HOSTILE


def sites(**valid: Any) -> st.SearchStrategy[Any]:
    """A source or target, whose fields may each be anything."""
    names = ("endpoint", "image", "ref", "tags", "images", "verify_tls")
    fields: dict[str, Any] = dict.fromkeys(names, HOSTILE) | {"auth": AUTHS}
    fields |= {name: st.just(value) | HOSTILE for name, value in valid.items()}
    return st.fixed_dictionaries({}, optional=fields) | HOSTILE


@given(
    st.fixed_dictionaries({}, optional={"source": sites(**SOURCE), "targets": st.lists(sites(**TARGET), max_size=2)})
)
def test_anything_is_taken_or_refused(spec: Any) -> None:
    """Whatever a caller sends, the answer is a spec that can be read back, or a fault that names a field."""
    try:
        accepted = parse(spec)
    except FieldFault as fault:
        message = fault.message
        assert message.startswith("spec")
        return
    parsed = stored(accepted)
    for index, target in enumerate(parsed.targets):
        assert site_of(target, accepted.secrets.get(f"auth.target.{index}"))


@given(st.fixed_dictionaries({"endpoint": st.text(), "image": st.text(), "ref": st.text()}))
def test_any_text_in_a_source(source: dict[str, str]) -> None:
    """What is taken as a source keeps to the grammar of hosts, paths and names."""
    try:
        parsed = stored(parse({**MINIMAL, "source": source}))
    except FieldFault:
        return
    (image,) = parsed.source.listed
    assert parsed.source.registry.host.isascii()
    assert image.path.isascii()
    assert image.name.isascii()
