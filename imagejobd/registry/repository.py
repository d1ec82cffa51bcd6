"""What a registry means by an answer that is no success (distribution spec, "Error Codes").

The codes of the error body count before the status: docker-registry says MANIFEST_BLOB_UNKNOWN inside a 500, too.

The `Link` header (RFC 8288), by which registries name the next page of a list.

Only the path and the query of a link are ever used, and only where the path is the list's own: a registry cannot send
a client and its credentials elsewhere. Nothing here raises, because the header is whatever the peer made of it.

Lists that a registry gives page by page (`Link`): followed to their end, which has to be reached.

Refuses, rather than to give a part for the whole: pages elsewhere, pages in a circle, more than `PAGES_MAX` of them.

What a registry lists as the tags of a repository: read within bounds, kept only where it can be a tag.

What is asked of one repository (OCI distribution spec): its manifests, blobs, tags and referrers.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import TypeVar

import msgspec
from multidict import CIMultiDictProxy
from yarl import URL

from imagejobd.model.errors import ErrorCode, Fault, NotFound, Permanent, Temporary
from imagejobd.model.reference import is_digest, is_tag
from imagejobd.registry.connection import Connection
from imagejobd.registry.http import Answer
from imagejobd.registry.manifest import (
    ACCEPT,
    DESCRIPTORS_MAX,
    INDEX_TYPES,
    MANIFEST_MAX_BYTES,
    Descriptor,
    Manifest,
    digest_of,
    media_type_of,
    parse_manifest,
)

# An image may miss as many blobs as manifests may list; what is more is not of the spec's form.
ERRORS_MAX = 20_000

_MISSING = frozenset({"MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_UNKNOWN"})
_DIGEST = re.compile(rb"sha256:[a-f0-9]{64}\b|sha512:[a-f0-9]{128}\b")


class BlobUnknown(Temporary):
    """The registry misses what a manifest refers to; `digests` are those that it names, maybe none.

    It happens although HEAD has just said 200: registries cache, and collect garbage. Pushing the content helps.
    """

    def __init__(self, message: str, digests: Iterable[str] = ()) -> None:
        super().__init__(ErrorCode.COPY_FAILED, message)
        self.digests = tuple(digests)


class _Error(msgspec.Struct):
    code: str = ""
    message: str | None = None
    detail: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def is_of_missing_content(self) -> bool:
        return self.code.upper() in _MISSING

    @property
    def digests(self) -> list[str]:
        """What it names: docker-registry does so in `detail` (`{"digest": …}`), ECR in its message."""
        found = _DIGEST.findall(bytes(self.detail)) or _DIGEST.findall((self.message or "").encode(errors="replace"))
        return [digest.decode() for digest in found]


class _Errors(msgspec.Struct):
    errors: list[_Error] = []


def codes_of(body: bytes) -> frozenset[str]:
    """The error codes in a body of the spec's form; none in any other."""
    return frozenset(error.code.upper() for error in _errors_in(body))


def is_success(answer: Answer) -> bool:
    return 200 <= answer.status < 300


def push_refused(connection: Connection, answer: Answer, what: str) -> Fault:
    """The fault for a write that did not succeed, after those that only some writes know."""
    fault = connection.refusal(answer, what=what)
    codes = codes_of(answer.body)
    if answer.status in (401, 403):
        return fault
    if answer.status == 405:
        return Permanent(
            ErrorCode.DENIED,
            f"{fault.message}; it is read-only, a mirror or in maintenance, or does not know this type of content: "
            "push to another one",
        )
    if answer.status == 413:
        return Permanent(ErrorCode.TOO_LARGE, fault.message)
    if "NAME_UNKNOWN" in codes or answer.status == 404:
        return NotFound(f"{fault.message}; where repositories are not made by pushing, create it first")
    if answer.status in (400, 409, 412, 422):
        return Permanent(ErrorCode.COPY_FAILED, fault.message)
    return fault


def blob_unknown(connection: Connection, answer: Answer, what: str, *, own_digest: str) -> BlobUnknown | None:
    """The fault where the answer to a manifest says that its content is missing; None where it says otherwise."""
    missing = [error for error in _errors_in(answer.body) if error.is_of_missing_content]
    if not missing:
        return None
    digests = dict.fromkeys(digest for error in missing for digest in error.digests)
    digests.pop(own_digest, None)
    told = connection.refusal(answer, what=what).message
    return BlobUnknown(f"{told}; it misses content that the manifest refers to", digests)


def _errors_in(body: bytes) -> list[_Error]:
    if body.count(b"{") > ERRORS_MAX:
        return []
    try:
        return msgspec.json.decode(body, type=_Errors).errors
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []


LINK_MAX_CHARS = 8_192

# RFC 8288 §3: `<URI-Reference>`, then parameters whose values are tokens or quoted strings. Nothing is given back, so
# that no header costs more than one pass.
_PARAMETER = r"""\s*+;\s*+([^\s=;,"<>]++)\s*+(?:=\s*+(?:"((?:[^"\\]|\\.)*+)"|([^\s;,"]*+)))?+"""
_PARAMETERS = re.compile(_PARAMETER)
_LINK = re.compile(rf"<([^<>]*+)>((?:{_PARAMETER})*+)")
_BASE = URL("http://registry.invalid")


def next_link(values: Iterable[str]) -> str | None:
    """The reference that `rel=next` marks in one or more `Link` headers; None without one."""
    for value in values:
        for link in _LINK.finditer(value[:LINK_MAX_CHARS]):
            if any(_is_next(parameter) for parameter in _PARAMETERS.finditer(link[2])):
                return link[1]
    return None


def page_target(reference: str, target: str) -> str | None:
    """Where a page that `target` (path and query) links to as `reference` is, again as path and query.

    None for another path, and for what is no URL. The host that an absolute reference names is of no account: behind a
    proxy it is often an inner one, and it is not asked.
    """
    if not reference.isascii() or not reference.isprintable() or " " in reference:
        return None
    try:
        base = _BASE.join(URL(target, encoded=True))
        page = base.join(URL(reference, encoded=True))
        path, query = page.raw_path, page.raw_query_string
    except ValueError:
        return None
    if page.scheme not in ("http", "https") or path != base.raw_path or not query:
        return None
    return f"{path}?{query}"


def _is_next(parameter: re.Match[str]) -> bool:
    name, quoted, token = parameter.groups()
    return name.lower() == "rel" and "next" in (quoted or token or "").lower().split()


PAGES_MAX = 2_000


async def pages(
    connection: Connection, target: str, *, scopes: Sequence[str], headers: Mapping[str, str], body_max_bytes: int
) -> AsyncGenerator[Answer, None]:
    """The answers to GET `target` (path and query) and to what each links to as its next. Statuses are the caller's to
    judge; only a 200 is followed. Raises `Permanent(registry_unavailable)` for a list without an end."""
    seen = {target}
    while True:
        answer = await connection.ask("GET", target, scopes=scopes, headers=headers, body_max_bytes=body_max_bytes)
        yield answer
        reference = next_link(answer.headers.getall("Link", [])) if answer.status == 200 else None
        if reference is None:
            return
        page = page_target(reference, target)
        if page is None:
            raise _endless(connection, target, "its next page is said to be elsewhere")
        if page in seen or len(seen) >= PAGES_MAX:
            raise _endless(connection, target, f"its pages go in a circle, or are more than {PAGES_MAX}")
        seen.add(page)
        target = page


def _endless(connection: Connection, target: str, why: str) -> Permanent:
    path = target.partition("?")[0]
    return Permanent(
        ErrorCode.REGISTRY_UNAVAILABLE, f"registry {connection.site.host}: {path} cannot be read whole: {why}"
    )


# All pages together.
TAGS_MAX = 100_000
# docker-registry 2.8 knows no pages for tags: all of them come at once.
TAGS_PAGE_MAX_BYTES = 16 * 1024 * 1024


class _Page(msgspec.Struct):
    # GCR's says far more of every manifest, which is not decoded.
    tags: msgspec.Raw = msgspec.Raw(b"null")


class TagsRead(msgspec.Struct, frozen=True):
    """`tags` of a page; `listed` counts what is no tag, too."""

    tags: list[str]
    listed: int


def read_tags(body: bytes, *, most: int) -> TagsRead:
    """The tags in a body of the spec's form. Raises `Permanent(too_large)` for more than `most`, before they are
    decoded (strings take 20 times what they took on the wire), and `Permanent(registry_unavailable)` for no list."""
    try:
        raw = bytes(msgspec.json.decode(body, type=_Page).tags)
        listed = [] if raw.count(b",") > most else msgspec.json.decode(raw, type=list[str] | None) or []
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Permanent(ErrorCode.REGISTRY_UNAVAILABLE, "its list of the tags cannot be read") from None
    if len(listed) > most or raw.count(b",") > most:
        raise Permanent(ErrorCode.TOO_LARGE, f"they are more than {TAGS_MAX}")
    return TagsRead([tag for tag in listed if is_tag(tag)], len(listed))


__all__ = ["BlobUnknown", "Repository"]

PAGE_ENTRIES = 1_000
# Larger bodies are hashed and decoded in a thread.
IN_PLACE_MAX_BYTES = 256 * 1024

# Distribution spec, "Referrers Tag Schema": both halves are cut so that they are a tag for every algorithm.
_FALLBACK_ALGORITHM_CHARS = 32
_FALLBACK_HEX_CHARS = 64
# Answers of registries that know nothing of the referrers API; quay has 406 for it, others 400.
_NO_REFERRERS_API = frozenset({400, 404, 405, 406, 501})
# Harbor 412, ECR and MSR 400, ACR and GitLab 409 or 405, the Hub and Artifactory 403: none of it is in the spec.
_MAYBE_IMMUTABLE = frozenset({400, 403, 405, 409, 412})
_IMMUTABLE = re.compile(rb"immutab|overwrit|already exists|locked|redeploy", re.IGNORECASE)


T = TypeVar("T")


class Repository(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """The repository `path` behind `connection`; `may_push` widens the scope that tokens are asked for."""

    connection: Connection
    path: str
    may_push: bool = False

    @property
    def scopes(self) -> tuple[str, ...]:
        return (f"repository:{self.path}:{'pull,push' if self.may_push else 'pull'}",)

    @property
    def host(self) -> str:
        return self.connection.site.host

    def __str__(self) -> str:
        return f"{self.host}/{self.path}"

    async def head_manifest(self, name: str) -> Descriptor | None:
        """What the tag or digest `name` points at, None where there is nothing.

        A registry that leaves the digest out, or answers HEAD wrongly (404, 405), is asked with GET and hashed. Where a
        push is meant, 403 is nothing too: registries say it of repositories that the push will make.
        """
        answer = await self._ask("HEAD", self._manifest_at(name), headers={"Accept": ACCEPT})
        found = _described(answer.headers, name) if answer.status == 200 else None
        if found or (answer.status == 404 and _is_of_a_registry(answer)):
            return found
        if answer.status in (200, 404, 405):
            answer = await self._get_manifest(name)
        if answer.status == 404 or (answer.status == 403 and self.may_push):
            return None
        if answer.status != 200:
            raise self._refused(answer, f"manifest of {self._named(name)}")
        return await _aside(answer.body, lambda: _hashed(answer, name))

    async def get_manifest(self, name: str) -> Manifest:
        """The manifest under a tag or digest, verified. Raises `Permanent(not_found)`."""
        answer = await self._get_manifest(name)
        if answer.status != 200:
            raise self._refused(answer, f"manifest of {self._named(name)}")
        told = answer.headers.get("Docker-Content-Digest", "")
        expected = name if is_digest(name) else (told if is_digest(told) else None)
        return await self._parsed(answer, self._named(name), expected_digest=expected)

    async def put_manifest(self, name: str, manifest: Manifest) -> bool:
        """Put raw bytes under a tag or digest; whether the registry keeps referrers itself (`OCI-Subject`).

        Raises `BlobUnknown` when the registry misses what the manifest refers to, `Permanent(conflict)` when the tag
        is immutable and points elsewhere.
        """
        headers = {"Content-Type": manifest.media_type}
        answer = await self._ask("PUT", self._manifest_at(name), headers=headers, content=manifest.raw)
        if not is_success(answer):
            await self._judge_manifest(answer, name, manifest)
        self.check_digest(answer, manifest.digest)
        return "OCI-Subject" in answer.headers

    async def has_blob(self, digest: str) -> bool:
        """Whether a blob can be read here (HEAD; on servers without it, GET of one byte)."""
        target = f"/v2/{self.path}/blobs/{digest}"
        answer = await self._ask("HEAD", target)
        if answer.status == 405:
            async with self.connection.stream(target, scopes=self.scopes, headers={"Range": "bytes=0-0"}) as stream:
                answer = msgspec.structs.replace(answer, status=stream.status, headers=stream.headers, body=b"")
        if answer.status in (200, 206, 416):  # 416: it is there and empty
            return True
        if answer.status == 404 or (answer.status == 403 and self.may_push):
            return False
        raise self._refused(answer, f"blob {digest} of {self.path}")

    async def tags(self) -> AsyncIterator[str]:
        """All tags, page by page (`Link`); names that cannot be tags are left out.

        Raises `Permanent(not_found)` for a repository that is not there, `Permanent(too_large)` beyond `TAGS_MAX`.
        """
        left = TAGS_MAX
        target = f"/v2/{self.path}/tags/list?n={PAGE_ENTRIES}"
        async with aclosing(self._pages(target, {}, TAGS_PAGE_MAX_BYTES)) as answers:
            async for answer in answers:
                if answer.status != 200:
                    raise self._refused(answer, f"tags of {self.path}")
                page = await self._tags_in(answer.body, left)
                left -= page.listed
                for tag in page.tags:
                    yield tag

    async def referrers(self, digest: str) -> tuple[Descriptor, ...]:
        """The manifests whose subject is `digest`: by the API, else by the fallback tag."""
        found: list[Descriptor] = []
        target = f"/v2/{self.path}/referrers/{digest}"
        async with aclosing(self._pages(target, {"Accept": ACCEPT}, MANIFEST_MAX_BYTES)) as answers:
            async for answer in answers:
                if not found and _has_no_referrers_api(answer):
                    return await self._tagged_referrers(digest)
                if answer.status != 200:
                    raise self._refused(answer, f"referrers of {digest} in {self.path}")
                found += (await self._parsed(answer, f"referrers of {digest}")).children
                if len(found) > DESCRIPTORS_MAX:
                    raise Permanent(ErrorCode.TOO_LARGE, f"{self}@{digest} has more than {DESCRIPTORS_MAX} referrers")
        return tuple(found)

    async def _tagged_referrers(self, digest: str) -> tuple[Descriptor, ...]:
        try:
            return (await self.get_manifest(fallback_tag(digest))).children
        except NotFound:
            return ()

    async def _judge_manifest(self, answer: Answer, name: str, manifest: Manifest) -> None:
        """Raise what a refused manifest means, unless the tag is immutable and already points at it."""
        what = f"pushing the manifest of {self._named(name)}"
        missing = blob_unknown(self.connection, answer, what, own_digest=manifest.digest)
        if missing:
            raise missing
        if answer.status == 413:
            raise Permanent(
                ErrorCode.TOO_LARGE, f"registry {self.host}: {what}: its {len(manifest.raw)} bytes are too many for it"
            )
        fault = push_refused(self.connection, answer, what)
        if answer.status not in _MAYBE_IMMUTABLE or is_digest(name):
            raise fault
        there = await self._there(name)
        if there is not None and there.digest == manifest.digest:
            return
        if there is not None and (answer.status in (409, 412) or _IMMUTABLE.search(answer.body)):
            raise Permanent(
                ErrorCode.CONFLICT,
                f"registry {self.host}: {self._named(name)} is immutable there and points elsewhere ({there.digest}); "
                "push to another tag, or lift the rule",
            )
        raise fault

    async def _there(self, name: str) -> Descriptor | None:
        """What a refused tag points at; nothing where that cannot be said, because the refusal says more."""
        try:
            return await self.head_manifest(name)
        except Fault:
            return None

    async def _parsed(self, answer: Answer, what: str, *, expected_digest: str | None = None) -> Manifest:
        content_type = answer.headers.get("Content-Type", "")
        with self._naming(what):
            return await _aside(
                answer.body, lambda: parse_manifest(answer.body, content_type, expected_digest=expected_digest)
            )

    async def _tags_in(self, body: bytes, most: int) -> TagsRead:
        with self._naming(f"tags of {self.path}"):
            return await _aside(body, lambda: read_tags(body, most=most))

    @contextmanager
    def _naming(self, what: str) -> Iterator[None]:
        """Say in faults of content where it is from."""
        try:
            yield
        except Permanent as fault:
            raise fault.with_message(f"registry {self.host}: {what}: {fault.message}") from None

    def check_digest(self, answer: Answer, digest: str) -> None:
        """A registry that stored something else is not to be trusted with a tag. The header is optional."""
        told = answer.headers.get("Docker-Content-Digest", digest)
        if is_digest(told) and told.partition(":")[0] == digest.partition(":")[0] and told != digest:
            raise Permanent(
                ErrorCode.COPY_FAILED, f"registry {self.host}: it stored {told} where {digest} was sent to {self.path}"
            )

    def _manifest_at(self, name: str) -> str:
        return f"/v2/{self.path}/manifests/{name}"

    async def _get_manifest(self, name: str) -> Answer:
        return await self._ask(
            "GET", self._manifest_at(name), headers={"Accept": ACCEPT}, body_max_bytes=MANIFEST_MAX_BYTES
        )

    async def _ask(
        self,
        method: str,
        target: str,
        *,
        headers: dict[str, str] = {},  # noqa: B006 - never changed
        content: bytes = b"",
        body_max_bytes: int = 1024 * 1024,
    ) -> Answer:
        return await self.connection.ask(
            method, target, scopes=self.scopes, headers=headers, content=content, body_max_bytes=body_max_bytes
        )

    def _pages(self, target: str, headers: dict[str, str], body_max_bytes: int) -> AsyncGenerator[Answer, None]:
        return pages(self.connection, target, scopes=self.scopes, headers=headers, body_max_bytes=body_max_bytes)

    def _named(self, name: str) -> str:
        return f"{self.path}{'@' if is_digest(name) else ':'}{name}"

    def _refused(self, answer: Answer, what: str) -> Fault:
        return self.connection.refusal(answer, what=what)


async def _aside(body: bytes, read: Callable[[], T]) -> T:
    """What `read` makes of `body`; others go on meanwhile where that takes a moment."""
    return await asyncio.to_thread(read) if len(body) > IN_PLACE_MAX_BYTES else read()


def fallback_tag(digest: str) -> str:
    """The tag under which clients keep the referrers of `digest` at registries without the API."""
    algorithm, _, hexadecimal = digest.partition(":")
    return f"{algorithm[:_FALLBACK_ALGORITHM_CHARS]}-{hexadecimal[:_FALLBACK_HEX_CHARS]}"


def _described(headers: CIMultiDictProxy[str], name: str) -> Descriptor | None:
    """What the headers of a manifest say; None where they do not say all of it, or contradict the digest asked for."""
    digest, length = headers.get("Docker-Content-Digest", ""), headers.get("Content-Length", "")
    if not is_digest(digest) or (is_digest(name) and digest != name):
        return None
    if not (length.isascii() and length.isdigit() and len(length) < 17):
        return None
    return Descriptor(digest=digest, size=int(length), media_type=media_type_of(headers.get("Content-Type", "")))


def _hashed(answer: Answer, name: str) -> Descriptor | None:
    """The body of a manifest by its digest; None where it is not what the digest `name` names."""
    digest = digest_of(answer.body, name.partition(":")[0] if is_digest(name) else "sha256")
    if is_digest(name) and digest != name:
        return None
    media_type = media_type_of(answer.headers.get("Content-Type", ""))
    return Descriptor(digest=digest, size=len(answer.body), media_type=media_type)


def _is_of_a_registry(answer: Answer) -> bool:
    """Whether a 404 without a body was said by an API that knows HEAD, and not by something before it."""
    return (
        "Docker-Distribution-Api-Version" in answer.headers
        or media_type_of(answer.headers.get("Content-Type", "")) == "application/json"
    )


def _has_no_referrers_api(answer: Answer) -> bool:
    """Distribution spec, "Listing Referrers": anything else than 200 with an index means that there is no such API."""
    is_index = media_type_of(answer.headers.get("Content-Type", "")) in INDEX_TYPES
    return answer.status in _NO_REFERRERS_API or (answer.status == 200 and not is_index)
