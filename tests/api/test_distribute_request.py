"""The document's request: what it becomes, and the words of the original for what is wrong with it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagejobd.api.distribute import WORDS_MAX_CHARS, configured_hosts, parse_request, refusal_words
from imagejobd.jobs.distribute import spec as specs
from imagejobd.jobs.distribute.spec import TARGETS_MAX
from imagejobd.model.errors import Permanent

SOURCE: dict[str, Any] = {"endpoint": "http://registry.example:5000/v2", "image": "team/app", "ref": "1.0"}
TARGET: dict[str, Any] = {"endpoint": "mirror.example"}
REQUEST: dict[str, Any] = {"source": SOURCE, "targets": [TARGET]}
SECRET = "correct-horse"


def parsed(request: Any, configured: frozenset[str] = frozenset()) -> dict[str, Any]:
    return parse_request(json.dumps(request).encode(), configured)[0]


def words(body: bytes) -> str:
    with pytest.raises(Permanent) as refused:
        parse_request(body, frozenset())
    return refusal_words(refused.value)


def with_source(**changes: Any) -> dict[str, Any]:
    return REQUEST | {"source": SOURCE | changes}


def with_target(**changes: Any) -> dict[str, Any]:
    return REQUEST | {"targets": [TARGET, TARGET | changes]}


def without(name: str) -> dict[str, Any]:
    return REQUEST | {"source": {key: value for key, value in SOURCE.items() if key != name}}


def test_defaults() -> None:
    """What is not said is the document's default, so that its fields are all that a client has to know."""
    assert parsed(REQUEST) == {
        "source": SOURCE | {"verify_tls": False},
        "targets": [TARGET | {"overwrite": False, "verify_tls": False}],
    }


def test_all_that_may_be_said() -> None:
    """Every field of the document arrives, and `image` and `ref` of a target; `auth` is handed on unread."""
    auth = {"url": "https://token.example", "header": '{"a": "b"}', "json": {"c": [1]}, "token_type": "JWT"}
    source = SOURCE | {"verify_tls": True, "auth": auth}
    target = TARGET | {"overwrite": True, "verify_tls": True, "image": "other", "ref": "2", "auth": auth}
    request = {"source": source, "targets": [target]}
    assert parsed(request) == request


def test_the_document_s_own_example() -> None:
    """What the original's README sends is a distribution; its `auth` is stored as a secret only."""
    token = "https://auth.docker.io/token?service=registry.docker.io&scope=repository:library/hello-world:pull"
    source = {"endpoint": "https://registry-1.docker.io/v2", "image": "library/hello-world", "ref": "latest"}
    target = {"endpoint": "http://localhost:5000/v2", "overwrite": True}
    auth = {"url": token, "token_type": "Bearer"}
    accepted = specs.parse(parsed({"source": source | {"auth": auth}, "targets": [target]}))
    assert accepted.spec["source"] == source | {"verify_tls": False}
    assert accepted.spec["targets"] == [target | {"verify_tls": False}]
    [secret] = accepted.secrets.values()
    assert json.loads(secret.reveal())["url"] == token


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        *((said, True) for said in (True, 1, 1.0, "1", "t", "T", "true", "True", "TRUE", "on", "On", "ON")),
        *((said, True) for said in ("y", "Y", "yes", "Yes", "YES")),
        *((said, False) for said in (False, 0, 0.0, "0", "f", "F", "false", "False", "FALSE", "off", "Off", "OFF")),
        *((said, False) for said in ("n", "N", "no", "No", "NO", None)),
    ],
)
def test_booleans(said: Any, meant: bool) -> None:
    """Booleans may be the numbers and words that the original took for them; null is the default."""
    spec = parsed({"source": SOURCE | {"verify_tls": said}, "targets": [TARGET | {"overwrite": said}]})
    assert (spec["source"]["verify_tls"], spec["targets"][0]["overwrite"]) == (meant, meant)


def test_fields_of_the_original_s_own() -> None:
    """What its source declares besides is taken, whatever it holds, and ignored, but for a token: it is handed on."""
    own = {"issuer": "ci", "retries_left": 3, "id": None, "status": {"value": 1}}
    assert parsed(REQUEST | own) == parsed(REQUEST)
    assert parsed(with_source(auth={"token": "t0ken", "url": None}))["source"]["auth"] == {"token": "t0ken"}


def test_no_targets() -> None:
    """A list without targets is one."""
    assert parsed(REQUEST | {"targets": []})["targets"] == []


def test_null_is_silence() -> None:
    """A field that is null was not given."""
    assert parsed(with_source(auth=None, verify_tls=None)) == parsed(REQUEST)
    assert parsed(with_target(image=None, ref=None)) == parsed(with_target())


@pytest.mark.parametrize("endpoint", ["https://Mirror.Example/v2/", "mirror.example", "https://mirror.example"])
def test_silence_does_not_weaken_what_is_configured(endpoint: str) -> None:
    """At a configured host TLS is as configured, unless the request says what it wants."""
    configured = frozenset({"mirror.example"})
    assert "verify_tls" not in parsed(with_source(endpoint=endpoint), configured)["source"]
    assert parsed(with_source(endpoint=endpoint, verify_tls=False), configured)["source"]["verify_tls"] is False
    [target, other] = parsed(with_target(endpoint="other.example"), configured)["targets"]
    assert "verify_tls" not in target
    assert other["verify_tls"] is False


@pytest.mark.parametrize(
    ("name", "endpoint", "is_meant"),
    [
        ("reg.example:443", "https://reg.example", True),
        ("reg.example:443", "reg.example", True),
        ("Reg.Example", "https://reg.example:443/v2", True),
        ("reg.example", "http://reg.example:80", True),
        ("reg.example:80", "http://reg.example", True),
        ("reg.example", "http://reg.example", True),
        ("index.docker.io", "https://registry-1.docker.io/v2", True),
        ("[::1]:443", "https://[::1]", True),
        ("reg.example:5000", "https://reg.example:5000", True),
        ("reg.example", "https://reg.example:5000", False),
        ("reg.example:5000", "https://reg.example", False),
        ("reg.example:443", "http://reg.example", False),
    ],
)
def test_ports_that_go_without_saying(name: str, endpoint: str, is_meant: bool) -> None:
    """A host is the configured one with and without its scheme's own port."""
    source = parsed(with_source(endpoint=endpoint), configured_hosts([name]))["source"]
    assert ("verify_tls" not in source) is is_meant


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (without("ref"), "Missing field: 'ref'"),
        (without("image"), "Missing field: 'image'"),
        (without("endpoint"), "Missing field: 'endpoint'"),
        (with_source(ref=None), "{'source': {'ref': ['Field may not be null.']}}"),
        (REQUEST | {"targets": None}, "{'targets': ['Field may not be null.']}"),
        (REQUEST | {"targets": [None]}, "{'targets': {0: ['Field may not be null.']}}"),
        ({}, "Missing field: 'source'"),
        ({"targets": []}, "Missing field: 'source'"),
        ({"source": {}}, "Missing field: 'targets'"),
        ({"source": {}, "targets": [{}]}, "Missing field: 'endpoint'"),
        ({"source": {"ref": "1"}, "targets": [{"foo": 1}]}, "Missing field: 'endpoint'"),
        ({"source": SOURCE, "targets": [{}]}, "Missing field: 'endpoint'"),
        ({"foo": 1}, "{'foo': ['Unknown field.']}"),
        (REQUEST | {"foo": None, "bar": 1}, "{'foo': ['Unknown field.'], 'bar': ['Unknown field.']}"),
        (REQUEST | {"platforms": ["linux/amd64"]}, "{'platforms': ['Unknown field.']}"),
        (with_source(foo=1), "{'source': {'foo': ['Unknown field.']}}"),
        (with_source(tags={"newest": 1}), "{'source': {'tags': ['Unknown field.']}}"),
        (with_target(foo=1), "{'targets': {1: {'foo': ['Unknown field.']}}}"),
        (with_target(tags=["1"]), "{'targets': {1: {'tags': ['Unknown field.']}}}"),
        (REQUEST | {"targets": {}}, "{'targets': ['Not a valid list.']}"),
        (REQUEST | {"targets": ["x"]}, "{'targets': {0: {'_schema': ['Invalid input type.']}}}"),
        (REQUEST | {"targets": [TARGET] * (TARGETS_MAX + 1)}, "{'targets': ['has 101 entries; the limit is 100']}"),
        (REQUEST | {"source": "x"}, "{'source': {'_schema': ['Invalid input type.']}}"),
        (with_source(ref=7), "{'source': {'ref': ['Not a valid string.']}}"),
        (with_source(verify_tls="perhaps"), "{'source': {'verify_tls': ['Not a valid boolean.']}}"),
        (with_source(verify_tls=[]), "{'source': {'verify_tls': ['Not a valid boolean.']}}"),
        (with_target(overwrite=2), "{'targets': {1: {'overwrite': ['Not a valid boolean.']}}}"),
        (with_target(auth="x"), "{'targets': {1: {'auth': {'_schema': ['Invalid input type.']}}}}"),
        (with_source(auth={"url": 1, "header": []}),
         "{'source': {'auth': {'url': ['Not a valid string.'], 'header': ['Not a valid string.']}}}"),
        (with_source(auth={"basicauth": {"user": None, "password": 1}}),
         "{'source': {'auth': {'basicauth': {'user': ['Field may not be null.'], 'password': "
         "['Not a valid string.']}}}}"),
        (with_source(auth={"basicauth": {"user": "me"}}), "Missing field: 'password'"),
        (REQUEST | {"source": SOURCE | {"image": 1}, "targets": [TARGET | {"foo": 1}, {"endpoint": 2}], "bar": 1},
         "{'bar': ['Unknown field.'], 'source': {'image': ['Not a valid string.']}, 'targets': "
         "{0: {'foo': ['Unknown field.']}, 1: {'endpoint': ['Not a valid string.']}}}"),
        ([REQUEST], "{'_schema': ['Invalid input type.']}"),
        (None, "{'_schema': ['Invalid input type.']}"),
    ],
)  # fmt: skip
def test_refusals(request_: Any, expected: str) -> None:
    """What is wrong is told as the original told it: all that is unknown or of another type, or what is missing."""
    assert words(json.dumps(request_).encode()) == expected


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"source=x", id="a form"),
        pytest.param(b"\xff\xfe", id="no UTF-8"),
        pytest.param(b'{"source": "\\ud800"}', id="half a character"),
        pytest.param(b'{"\\ud800": 1}', id="half a character in a name"),
        pytest.param(b"[" * 100_000, id="open brackets"),
        pytest.param(b'{"source":' * 50_000 + b"1" + b"}" * 50_000, id="deep"),
        pytest.param(b'{"source": 1e999}', id="infinite number"),
        pytest.param(b'{"source": NaN}', id="no number"),
        pytest.param(b'{"source": {}} x', id="more than JSON"),
    ],
)
def test_what_is_no_json(body: bytes) -> None:
    """The reason is told in one short line."""
    said = words(body)
    assert said.startswith("the request body is not valid JSON: ")
    assert len(said) < 200


def test_values_are_never_quoted() -> None:
    """Anything may stand where a password was meant to; an endpoint may hold one."""
    for request in (
        with_source(endpoint=f"https://user:{SECRET}@registry.example"),
        with_target(verify_tls=SECRET),
        with_source(ref=[SECRET]),
        REQUEST | {"targets": SECRET},
        REQUEST | {"source": [SECRET]},
        SECRET,
    ):
        assert SECRET not in words(json.dumps(request).encode())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*SOURCE, "targets", "source", "auth", "verify_tls"]) | st.text(), inner)
    ),
    max_leaves=12,
)


@given(
    st.fixed_dictionaries(
        {"source": json_values | st.fixed_dictionaries(dict.fromkeys(SOURCE, json_values)), "targets": json_values},
        optional={"x": json_values},
    )
    | json_values
)
def test_any_json_is_taken_or_refused_in_words(value: Any) -> None:
    """Nothing but a spec or a refusal comes of any JSON, and a refusal is bounded."""
    try:
        spec, _ = parse_request(json.dumps(value).encode(), frozenset())
    except Permanent as fault:
        said = refusal_words(fault)
        assert 0 < len(said) <= WORDS_MAX_CHARS
        assert said.isprintable() or "not valid JSON" in said
    else:
        assert spec.keys() == {"source", "targets"}
