"""What is asked of one repository (OCI distribution spec): its manifests, blobs, tags and referrers.

Lists that come page by page are followed to their end, which has to be reached: a part is never taken for the whole.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

import msgspec

from imagejobd.model.errors import ErrorCode, Fault, NotFound, Permanent, Temporary
from imagejobd.model.reference import is_digest, is_tag
from imagejobd.registry.connection import Connection
from imagejobd.registry.errors import codes_of, is_missing_content, missing_digests, unavailable
from imagejobd.registry.headers import next_page, parse_content_range, parse_length
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

PAGE_ENTRIES = 1_000
# All pages together.
TAGS_MAX = 100_000
# docker-registry 2.8 knows no pages for tags: all of them come at once.
TAGS_PAGE_MAX_BYTES = 16 * 1024 * 1024
# Larger bodies are hashed and decoded in a thread.
IN_PLACE_MAX_BYTES = 256 * 1024

# Distribution spec, "Referrers Tag Schema": both halves are cut so that they are a tag for every algorithm.
_FALLBACK_ALGORITHM_CHARS = 32
_FALLBACK_HEX_CHARS = 64
# What a manifest's HEAD is answered where only GET works, or something before the registry knows no HEAD.
_TRY_GET = frozenset({200, 400, 404, 405, 500, 501})
# Answers of registries that know nothing of the referrers API, or whose gateway lets nobody at it; quay has 406.
_NO_REFERRERS_API = frozenset({400, 401, 403, 404, 405, 406, 501})
# Harbor 412, ECR and MSR 400, ACR and GitLab 409 or 405, the Hub and Artifactory 403: none of it is in the spec.
_MAYBE_IMMUTABLE = frozenset({400, 403, 405, 409, 412})
_IMMUTABLE = re.compile(rb"immutab|overwrit|already exists|locked|redeploy", re.IGNORECASE)

T = TypeVar("T")


class BlobUnknown(Temporary):
    """The registry misses what a manifest refers to; `digests` are those that it names, maybe none.

    It happens although HEAD has just said 200: registries cache, and collect garbage. Pushing the content helps.
    """

    def __init__(self, message: str, digests: Iterable[str] = ()) -> None:
        super().__init__(ErrorCode.COPY_FAILED, message)
        self.digests = tuple(digests)


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

        A registry that leaves the digest out, or answers HEAD wrongly (400, 404, 405, 500, 501), is asked with GET and
        hashed. Where a push is meant, 403 is nothing too: registries say it of repositories that the push will make.
        """
        answer = await self._ask("HEAD", self._manifest_at(name), headers={"Accept": ACCEPT})
        descriptor = _described(answer, name) if answer.status == 200 else None
        if descriptor or (answer.status == 404 and _is_of_a_registry(answer)):
            return descriptor
        if answer.status in _TRY_GET:
            answer = await self._get_manifest(name)
        if answer.status == 404 or (answer.status == 403 and self.may_push):
            return None
        if answer.status != 200:
            raise self._refused(answer, f"manifest of {self._named(name)}")
        return await self._read(answer, self._named(name), partial(_hashed, answer, name))

    async def get_manifest(self, name: str) -> Manifest:
        """The manifest under a tag or digest, verified. Raises `Permanent(not_found)`."""
        answer = await self._get_manifest(name)
        if answer.status != 200:
            raise self._refused(answer, f"manifest of {self._named(name)}")
        expected = name if is_digest(name) else await self._digest_of_tag(answer)
        return await self._parsed(answer, self._named(name), expected)

    async def put_manifest(self, name: str, manifest: Manifest) -> bool:
        """Put raw bytes under a tag or digest; whether the registry keeps referrers itself (`OCI-Subject`).

        Raises `BlobUnknown` when the registry misses what the manifest refers to, `Permanent(conflict)` when the tag
        is immutable and points elsewhere.
        """
        headers = {"Content-Type": manifest.media_type}
        answer = await self._ask("PUT", self._manifest_at(name), headers=headers, content=manifest.raw)
        if is_success(answer):
            self.check_digest(answer, manifest.digest)
        else:
            await self._judge_manifest(answer, name, manifest)
        return "OCI-Subject" in answer.headers

    async def has_blob(self, digest: str, size: int, *, is_retried: bool = True) -> bool:
        """Whether a blob of `size` bytes can be read here. A HEAD that says no length, or another one (it may have
        ended on the page of a login), counts for nothing: then, and on servers without HEAD, GET of one byte does."""
        target = f"/v2/{self.path}/blobs/{digest}"
        answer = await self._ask("HEAD", target, is_retried=is_retried)
        if answer.status == 200 and parse_length(answer.headers) == size:
            return True
        if answer.status in (200, 405, 501):
            async with self.connection.stream(target, scopes=self.scopes, headers={"Range": "bytes=0-0"}) as stream:
                answer = msgspec.structs.replace(answer, status=stream.status, headers=stream.headers, body=b"")
        if answer.status == 206:
            content_range = parse_content_range(answer.headers.get("Content-Range"))
            return content_range is not None and content_range[2] == size
        if answer.status in (200, 416):
            return size == (parse_length(answer.headers) if answer.status == 200 else 0)
        if answer.status == 404 or (answer.status == 403 and self.may_push):
            return False
        raise self._refused(answer, f"blob {digest} of {self.path}")

    async def tags(self) -> AsyncIterator[str]:
        """All tags, page by page; names that cannot be tags are left out.

        Raises `Permanent(not_found)` for a repository that is not there, `Permanent(too_large)` beyond `TAGS_MAX`.
        """
        limit = TAGS_MAX
        async for answer in self._pages(f"/v2/{self.path}/tags/list?n={PAGE_ENTRIES}", {}, TAGS_PAGE_MAX_BYTES):
            if answer.status != 200:
                raise self._refused(answer, f"tags of {self.path}")
            tags = await self._read(answer, f"tags of {self.path}", partial(read_tags, answer.body, most=limit))
            limit -= len(tags)
            for tag in tags:
                yield tag

    async def referrers(self, digest: str) -> tuple[Descriptor, ...]:
        """The manifests whose subject is `digest`: what the API and the fallback tag list, each once. Clients kept that
        tag before the registry had the API, and where they were not let at it."""
        by_api = await self._api_referrers(digest)
        try:
            by_tag = (await self.get_manifest(fallback_tag(digest))).children
        except Permanent as fault:
            if not isinstance(fault, NotFound) and (by_api is None or fault.code is not ErrorCode.DENIED):
                raise
            by_tag = ()
        return tuple({descriptor.digest: descriptor for descriptor in (*(by_api or ()), *by_tag)}.values())

    async def _api_referrers(self, digest: str) -> list[Descriptor] | None:
        """Distribution spec, "Listing Referrers": anything else than an index under 200 means that there is no API.
        Some send theirs as `application/json`."""
        what = f"referrers of {digest} in {self.path}"
        descriptors: list[Descriptor] = []
        is_index = False
        try:
            async for answer in self._pages(
                f"/v2/{self.path}/referrers/{digest}", {"Accept": ACCEPT}, MANIFEST_MAX_BYTES
            ):
                if not descriptors and answer.status in _NO_REFERRERS_API:
                    return None
                if answer.status != 200:
                    raise self._refused(answer, what)
                is_index = _media_type(answer) in INDEX_TYPES
                descriptors += (await self._parsed(answer, what, None)).children
                if len(descriptors) > DESCRIPTORS_MAX:
                    break
        except Permanent as fault:
            if descriptors or is_index or fault.code not in (ErrorCode.DENIED, ErrorCode.INVALID):
                raise
            return None
        if len(descriptors) > DESCRIPTORS_MAX:
            raise Permanent(ErrorCode.TOO_LARGE, f"{self}@{digest} has more than {DESCRIPTORS_MAX} referrers")
        return descriptors

    def push_refusal(self, answer: Answer, what: str) -> Fault:
        """The fault for a write that did not succeed, after those that only some writes know."""
        status, fault = answer.status, self._refused(answer, what)
        if status == 405:
            return Permanent(
                ErrorCode.DENIED,
                f"{fault.message}; it is read-only, a mirror or in maintenance, or does not know this type of content: "
                "push to another one",
            )
        if status == 404 or (status not in (401, 403, 413) and "NAME_UNKNOWN" in codes_of(answer.body)):
            return NotFound(f"{fault.message}; where repositories are not made by pushing, create it first")
        if status == 413:
            return Permanent(ErrorCode.TOO_LARGE, f"{fault.message}; that is too large for it")
        return Permanent(ErrorCode.COPY_FAILED, fault.message) if status in (400, 409, 412, 422) else fault

    def check_digest(self, answer: Answer, digest: str) -> None:
        """A registry that stored something else is not to be trusted with a tag. The header is optional."""
        stored = answer.headers.get("Docker-Content-Digest", digest)
        if is_digest(stored) and stored.partition(":")[0] == digest.partition(":")[0] and stored != digest:
            raise Permanent(
                ErrorCode.COPY_FAILED,
                f"registry {self.host}: it stored {stored} where {digest} was sent to {self.path}",
            )

    async def _judge_manifest(self, answer: Answer, name: str, manifest: Manifest) -> None:
        """Raise what a refused manifest means, unless the tag is immutable and already points at it."""
        what = f"pushing the manifest of {self._named(name)} ({len(manifest.raw)} bytes)"
        if is_missing_content(answer.body):
            message = f"{self._refused(answer, what).message}; it misses content that the manifest refers to"
            raise BlobUnknown(message, (d for d in missing_digests(answer.body) if d != manifest.digest))
        fault = self.push_refusal(answer, what)
        if answer.status not in _MAYBE_IMMUTABLE or is_digest(name):
            raise fault
        try:
            there = await self.head_manifest(name)
        except Fault:
            raise fault from None  # it says more
        if there is not None and there.digest == manifest.digest:
            return
        if there is not None and (answer.status in (409, 412) or _IMMUTABLE.search(answer.body)):
            raise Permanent(
                ErrorCode.CONFLICT,
                f"registry {self.host}: {self._named(name)} is immutable there and points elsewhere ({there.digest}); "
                "push to another tag, or lift the rule",
            )
        raise fault

    async def _digest_of_tag(self, answer: Answer) -> str | None:
        """What the bytes of a tag must hash to: as the registry's header says. Where they do not, either may be wrong;
        what was hashed counts when the registry has the same bytes under that digest."""
        expected = answer.headers.get("Docker-Content-Digest", "")
        if not is_digest(expected):
            return None
        digest = await self._read(answer, "", partial(digest_of, answer.body, expected.partition(":")[0]))
        if digest != expected:
            again = await self._get_manifest(digest)
            if again.status == 200 and again.body == answer.body:
                return digest
        return expected

    async def _pages(self, target: str, headers: Mapping[str, str], body_max_bytes: int) -> AsyncIterator[Answer]:
        """The answers to GET `target` (path and query) and to what each links to as its next. Statuses are the caller's
        to judge; only a 200 is followed. Raises `Permanent(registry_unavailable)` for a list without an end."""
        pages = [target]
        for page in pages:
            answer = await self._ask("GET", page, headers=headers, body_max_bytes=body_max_bytes)
            yield answer
            try:
                following = next_page(answer.headers.getall("Link", []), pages) if answer.status == 200 else None
            except ValueError as error:
                why = f"{target.partition('?')[0]} cannot be read whole: {error}"
                raise unavailable(Permanent, self.host, why) from None
            pages += [following] if following else []

    async def _parsed(self, answer: Answer, what: str, expected_digest: str | None) -> Manifest:
        content_type = answer.headers.get("Content-Type", "")
        parse = partial(parse_manifest, answer.body, content_type, expected_digest=expected_digest)
        return await self._read(answer, what, parse)

    async def _read(self, answer: Answer, what: str, read: Callable[[], T]) -> T:
        """What `read` makes of a body, in a thread where that takes a moment. Faults say where it is from."""
        try:
            return await asyncio.to_thread(read) if len(answer.body) > IN_PLACE_MAX_BYTES else read()
        except Permanent as fault:
            raise fault.with_message(f"registry {self.host}: {what}: {fault.message}") from None

    async def _get_manifest(self, name: str) -> Answer:
        return await self._ask(
            "GET", self._manifest_at(name), headers={"Accept": ACCEPT}, body_max_bytes=MANIFEST_MAX_BYTES
        )

    async def _ask(self, method: str, target: str, **options: Any) -> Answer:
        return await self.connection.ask(method, target, scopes=self.scopes, **options)

    def _manifest_at(self, name: str) -> str:
        return f"/v2/{self.path}/manifests/{name}"

    def _named(self, name: str) -> str:
        return f"{self.path}{'@' if is_digest(name) else ':'}{name}"

    def _refused(self, answer: Answer, what: str) -> Fault:
        return self.connection.refusal(answer, what=what)


def is_success(answer: Answer) -> bool:
    return 200 <= answer.status < 300


def fallback_tag(digest: str) -> str:
    """The tag under which clients keep the referrers of `digest` at registries without the API."""
    algorithm, _, hexadecimal = digest.partition(":")
    return f"{algorithm[:_FALLBACK_ALGORITHM_CHARS]}-{hexadecimal[:_FALLBACK_HEX_CHARS]}"


class _TagPage(msgspec.Struct):
    # GCR's says far more of every manifest, which is not decoded.
    tags: msgspec.Raw = msgspec.Raw(b"null")


def read_tags(body: bytes, *, most: int) -> list[str]:
    """The tags in a body of the spec's form. Raises `Permanent(too_large)` for more than `most`, before they are
    decoded (strings take 20 times what they took on the wire), and `Permanent(registry_unavailable)` for no list."""
    try:
        raw = bytes(msgspec.json.decode(body, type=_TagPage).tags)
        names = [] if raw.count(b",") > most else msgspec.json.decode(raw, type=list[str] | None) or []
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Permanent(ErrorCode.REGISTRY_UNAVAILABLE, "its list of the tags cannot be read") from None
    if len(names) > most or raw.count(b",") > most:
        raise Permanent(ErrorCode.TOO_LARGE, f"they are more than {TAGS_MAX}")
    return [tag for tag in names if is_tag(tag)]


def _described(answer: Answer, name: str) -> Descriptor | None:
    """What the headers of a manifest say; None where they do not say all of it, or contradict the digest asked for."""
    digest, size = answer.headers.get("Docker-Content-Digest", ""), parse_length(answer.headers)
    if size is None or not is_digest(digest) or (is_digest(name) and digest != name):
        return None
    return Descriptor(digest=digest, size=size, media_type=_media_type(answer))


def _hashed(answer: Answer, name: str) -> Descriptor | None:
    """The body of a manifest by its digest; None where it is not what the digest `name` names."""
    digest = digest_of(answer.body, name.partition(":")[0] if is_digest(name) else "sha256")
    if is_digest(name) and digest != name:
        return None
    return Descriptor(digest=digest, size=len(answer.body), media_type=_media_type(answer))


def _media_type(answer: Answer) -> str:
    return media_type_of(answer.headers.get("Content-Type", ""))


def _is_of_a_registry(answer: Answer) -> bool:
    """Whether a 404 without a body was said by an API that knows HEAD, and not by something before it."""
    return "Docker-Distribution-Api-Version" in answer.headers or _media_type(answer) == "application/json"
