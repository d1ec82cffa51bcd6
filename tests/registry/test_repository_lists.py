"""Tags and referrers of one repository, asked of a real registry and of one that misbehaves."""

import json
import threading
import tracemalloc
from typing import Any

import pytest
from registry_content import digest_of, make_image, make_index, put_image, put_manifest, wire
from repositories import reader

from harness.proxy import Answer, FaultProxy
from harness.registry import Registry
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.registry import headers
from imagejobd.registry import repository as repository_module
from imagejobd.registry.client import RegistryClient
from imagejobd.registry.manifest import OCI_INDEX, Descriptor
from imagejobd.registry.repository import IN_PLACE_MAX_BYTES, TAGS_MAX, fallback_tag, read_tags

NOWHERE = "sha256:" + "0" * 64


async def test_tags(registry: Registry, client: RegistryClient) -> None:
    """All tags of a repository; an unknown repository is not found."""
    for tag in ("1", "2", "latest"):
        put_image(registry, "tags/one", tag, make_image(b"layer"))
    assert sorted([tag async for tag in reader(client, registry.host, "tags/one").tags()]) == ["1", "2", "latest"]
    with pytest.raises(Permanent) as absent:
        [tag async for tag in reader(client, registry.host, "tags/nowhere").tags()]
    assert absent.value.code is ErrorCode.NOT_FOUND


def page(tags: Any, link: str = "") -> Answer:
    return Answer(200, {"Link": link} if link else {}, json.dumps({"name": "x", "tags": tags}).encode())


async def tags_at(client: RegistryClient, proxy: FaultProxy) -> list[str]:
    return [tag async for tag in reader(client, proxy.host, "x").tags()]


async def test_pages_of_tags(proxy: FaultProxy, client: RegistryClient) -> None:
    """Pages are followed by `Link` to the end; an empty page is no end, and what is no tag is left out."""
    proxy.add("GET", r"/v2/x/tags/list\?n=1000", page(["a", "b"], '</v2/x/tags/list?last=b>; rel="next"'))
    proxy.add("GET", r"/v2/x/tags/list\?last=b", page(None, f"<http://{proxy.host}/v2/x/tags/list?last=c>; rel=next"))
    proxy.add("GET", r"/v2/x/tags/list\?last=c", page(["d", "no/tag", ""]))
    assert await tags_at(client, proxy) == ["a", "b", "d"]


@pytest.mark.parametrize(
    "link", ["<?last=b>", '<?last=b>; title="more, much"; n=1', "?last=b", "<?last=b>; rel=next; n=1"]
)
async def test_link_in_other_words(proxy: FaultProxy, client: RegistryClient, link: str) -> None:
    """A next page is read though its link has no relation, more parameters or no brackets."""
    proxy.add("GET", r"/v2/x/tags/list\?n=1000", page(["a"], link))
    proxy.add("GET", r"/v2/x/tags/list\?last=b", page(["b"]))
    assert await tags_at(client, proxy) == ["a", "b"]


@pytest.mark.parametrize(
    "link",
    [
        '<?n=1000>; rel="next"',
        "<?last=b>; rel=next",
        "<?last=b>",
        "<http://evil.example/?a=b>; rel=next",
        "<http://evil.example/?a=b>",
        "<?last=b; rel=next",
    ],
)
async def test_pages_without_an_end(proxy: FaultProxy, client: RegistryClient, link: str) -> None:
    """Pages in a circle, pages elsewhere and links that cannot be read are an error: a part of a list is never taken
    for the whole."""
    proxy.add("GET", "/v2/.*", page(["a"], link), times=None)
    with pytest.raises(Permanent, match="cannot be read whole"):
        await tags_at(client, proxy)
    assert proxy.count("GET", "/v2/.*") <= 2


async def test_bounds_on_tags(proxy: FaultProxy, client: RegistryClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither tags nor pages come without end."""
    monkeypatch.setattr(repository_module, "TAGS_MAX", 3)
    monkeypatch.setattr(headers, "PAGES_MAX", 2)
    proxy.add("GET", "/v2/.*", page(["a", "b", "c", "d"]))
    with pytest.raises(Permanent, match="more than 3") as refused:
        await tags_at(client, proxy)
    assert refused.value.code is ErrorCode.TOO_LARGE
    for letter in "abcd":
        proxy.add("GET", "/v2/.*", page([letter], f"<?last={letter}>; rel=next"))
    monkeypatch.setattr(headers, "PAGES_MAX", 9)
    with pytest.raises(Permanent, match="more than 3") as refused:
        await tags_at(client, proxy)
    assert refused.value.code is ErrorCode.TOO_LARGE
    monkeypatch.setattr(headers, "PAGES_MAX", 2)
    for number in range(3):
        proxy.add("GET", "/v2/.*", page([], f"<?last={number}>; rel=next"))
    with pytest.raises(Permanent, match="more than 2"):
        await tags_at(client, proxy)


@pytest.mark.parametrize("count", [TAGS_MAX + 2, 3_300_000])
def test_memory_of_tags(count: int) -> None:
    """Tags are counted before they are decoded, because strings take 20 times what they took on the wire."""
    content = b'{"tags":[' + b'"ab",' * (count - 1) + b'"ab"]}'
    tracemalloc.start()
    try:
        with pytest.raises(Permanent) as refused:
            read_tags(content, most=TAGS_MAX)
        assert tracemalloc.get_traced_memory()[1] < len(content) + 1024 * 1024
    finally:
        tracemalloc.stop()
    assert refused.value.code is ErrorCode.TOO_LARGE


def test_what_else_is_said_of_tags() -> None:
    """What a registry lists beside the tags (GCR: every manifest) does not count."""
    content = {"manifest": {f"sha256:{number}": {"tag": ["a", "b"]} for number in range(TAGS_MAX)}, "tags": ["1", "2"]}
    assert read_tags(json.dumps(content).encode(), most=2) == ["1", "2"]


async def test_large_lists_are_read_aside(
    proxy: FaultProxy, client: RegistryClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others go on while a large body is read; a small one is not worth a thread."""
    threads: list[int] = []

    def watched(body: bytes, *, most: int) -> list[str]:
        threads.append(threading.get_ident())
        return read_tags(body, most=most)

    monkeypatch.setattr(repository_module, "read_tags", watched)
    many = [f"{number:064}" for number in range(IN_PLACE_MAX_BYTES // 64)]
    for tags in (["a"], many):
        proxy.add("GET", "/v2/.*", page(tags))
        assert await tags_at(client, proxy) == tags
    assert threads[0] == threading.get_ident() != threads[1]


@pytest.mark.parametrize("body", [b"", b"[]", b'{"tags":"x"}', b"[" * 10_000, b"<html>"])
async def test_list_that_cannot_be_read(proxy: FaultProxy, client: RegistryClient, body: bytes) -> None:
    """What is no list of tags is an error, not an empty list."""
    proxy.add("GET", "/v2/.*", Answer(200, {}, body))
    with pytest.raises(Permanent, match="cannot be read"):
        await tags_at(client, proxy)


async def test_referrers_by_tag(registry: Registry, client: RegistryClient) -> None:
    """At a registry without the API the fallback tag's index is read; without that there are none."""
    subject = put_image(registry, "refs/one", "1", make_image(b"layer"))
    repository = reader(client, registry.host, "refs/one")
    assert await repository.referrers(subject.digest) == ()
    signature = put_image(registry, "refs/one", "s", make_image(b"sign", subject=wire(subject.descriptor)))
    put_manifest(registry, "refs/one", fallback_tag(subject.digest), make_index(signature))
    assert await repository.referrers(subject.digest) == (signature.descriptor,)


def index_of(*digests: str) -> bytes:
    entries = [{"digest": digest, "size": 7, "artifactType": "x/y"} for digest in digests]
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).encode()


FIRST, SECOND = (
    Descriptor(digest=digest_of(letter), size=7, artifact_type="x/y", annotations={}) for letter in (b"a", b"b")
)
FALLBACK = f"/v2/x/manifests/sha256-{'0' * 64}"


def index_answer(*descriptors: Descriptor, content_type: str = OCI_INDEX, link: str = "") -> Answer:
    headers = {"Content-Type": content_type} | ({"Link": link} if link else {})
    return Answer(200, headers, index_of(*(descriptor.digest for descriptor in descriptors)))


@pytest.mark.parametrize("content_type", [OCI_INDEX, "application/json"])
async def test_referrers_by_api(proxy: FaultProxy, client: RegistryClient, content_type: str) -> None:
    """The API's index is read, page by page, also where it is sent as plain JSON."""
    proxy.add("GET", "/v2/x/referrers/sha256:[^?]*", index_answer(FIRST, content_type=content_type, link="<?p=2>"))
    proxy.add("GET", r"/v2/x/referrers/.*\?p=2", index_answer(SECOND, content_type=content_type))
    assert await reader(client, proxy.host, "x").referrers(NOWHERE) == (FIRST, SECOND)


async def test_second_page_of_referrers_is_missing(proxy: FaultProxy, client: RegistryClient) -> None:
    """A list that breaks off is an error, and no reason to take what came for the whole."""
    proxy.add("GET", "/v2/x/referrers/sha256:[^?]*", index_answer(FIRST, link="<?p=2>; rel=next"))
    proxy.add("GET", r"/v2/x/referrers/.*\?p=2", Answer(404))
    with pytest.raises(Permanent, match="referrers"):
        await reader(client, proxy.host, "x").referrers(NOWHERE)


@pytest.mark.parametrize(
    "answer",
    [
        *(Answer(status) for status in (400, 401, 403, 404, 405, 406, 501)),
        Answer(200, {"Content-Type": "text/html"}, b"<html>"),
        Answer(200, {"Content-Type": "application/json"}, b"{}"),
        index_answer(),
    ],
    ids=lambda answer: f"{answer.status} {answer.body[:8]!r}",
)
async def test_no_referrers_api(proxy: FaultProxy, client: RegistryClient, answer: Answer) -> None:
    """Where the API is missing, forbidden, answers something else or lists nothing, the fallback tag is read."""
    proxy.add("GET", "/v2/x/referrers/.*", answer)
    proxy.add("GET", FALLBACK, index_answer(FIRST, SECOND))
    assert await reader(client, proxy.host, "x").referrers(NOWHERE) == (FIRST, SECOND)


async def test_referrers_by_both(proxy: FaultProxy, client: RegistryClient) -> None:
    """What only the API lists and what only the fallback tag lists both count, each once."""
    third = Descriptor(digest=digest_of(b"c"), size=7, artifact_type="x/y")
    proxy.add("GET", "/v2/x/referrers/.*", index_answer(FIRST, SECOND))
    proxy.add("GET", FALLBACK, index_answer(SECOND, third))
    assert await reader(client, proxy.host, "x").referrers(NOWHERE) == (FIRST, SECOND, third)


@pytest.mark.parametrize("status", [401, 403])
async def test_forbidden_referrers(proxy: FaultProxy, client: RegistryClient, status: int) -> None:
    """Where neither may be read, that is not taken for "none"; where the API answers, the tag need not be readable."""
    proxy.add("GET", FALLBACK, Answer(status), times=None)
    proxy.add("GET", "/v2/x/referrers/.*", index_answer(FIRST))
    assert await reader(client, proxy.host, "x").referrers(NOWHERE) == (FIRST,)
    proxy.add("GET", "/v2/.*", Answer(status), times=None)
    with pytest.raises(Permanent) as denied:
        await reader(client, proxy.host, "x").referrers(NOWHERE)
    assert denied.value.code is ErrorCode.DENIED


def test_fallback_tag() -> None:
    """The tag of the referrers of a digest is one that every registry takes, for longer digests too."""
    assert fallback_tag("sha256:" + "a" * 64) == "sha256-" + "a" * 64
    assert fallback_tag("sha512:" + "b" * 128) == "sha512-" + "b" * 64
