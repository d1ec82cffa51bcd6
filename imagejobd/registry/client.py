"""What is asked of a registry (OCI distribution spec): so far, which digest a tag points at."""

import asyncio
import hashlib
from collections.abc import Mapping
from types import TracebackType
from typing import Self

import aiohttp
import msgspec
from yarl import URL

from imagejobd.model.egress import Egress
from imagejobd.model.errors import Fault
from imagejobd.model.reference import DEFAULT_TAG, ImageReference, is_digest
from imagejobd.model.secret import Credentials, Redactor
from imagejobd.registry.auth import Access, Authenticator
from imagejobd.registry.challenge import parse_challenges
from imagejobd.registry.faults import detail, refusal, translated
from imagejobd.registry.settings import Endpoint, RegistryHost, RegistryHosts
from imagejobd.registry.transport import IDLE_TIMEOUT_S, Answer, Transport

# Registries may refuse larger ones too (distribution spec, "Pushing Manifests": 4 megabytes).
MANIFEST_MAX_BYTES = 4 * 1024 * 1024
# Waited before a manifest is asked for a second time; a whole new push would cost far more.
HEAD_AGAIN_S = 0.5
# docker-registry answers 404 for a manifest of a type that the client does not accept: so all, always.
MANIFEST_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
)


class _Manifest(msgspec.Struct, frozen=True):
    """A manifest's address: where the registry is, and where below that."""

    reference: ImageReference
    endpoint: Endpoint

    @property
    def url(self) -> URL:
        name = self.reference.digest or self.reference.tag or DEFAULT_TAG
        return URL(f"{self.endpoint.origin}/v2/{self.reference.path}/manifests/{name}")


class RegistryClient:
    """Asks registries. Open it inside the event loop that uses it; safe for many tasks at once.

    `egress` decides which addresses may be reached: a registry names its token server and redirects as it likes.
    """

    def __init__(
        self,
        hosts: Mapping[str, RegistryHost],
        egress: Egress,
        *,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
    ) -> None:
        """Raises `Permanent(invalid)` for a host's file that cannot be used; see `RegistryHosts`."""
        self._hosts = RegistryHosts(hosts)
        self._transport = Transport(self._hosts.tls_for, egress, idle_timeout_s=idle_timeout_s)
        self._authenticator = Authenticator(self._transport, self._hosts)

    def credentials_for(self, host: str) -> Credentials | None:
        """The configured login of a host, as `ImageReference.host` names it."""
        return self._hosts.credentials_for(host)

    async def head_manifest(self, reference: ImageReference, credentials: Credentials | None) -> str | None:
        """The digest of the manifest that `reference` points at; None where the registry has no such manifest.

        Raises `Permanent(denied)` for 401 and 403, `Permanent(too_large)` beyond 4 MiB, `Temporary` for network
        faults, 429 and 5xx (with the registry's Retry-After), `Permanent(egress)` for a denied address.
        """
        with translated(reference.host):
            manifest, answer = await self._knock(reference)
            headers: dict[str, str] = {}
            if answer.status == 401:
                headers["Authorization"] = await self._authorization(manifest, answer, credentials)
                answer = await self._head(manifest, headers)
            digest = answer.headers.get("Docker-Content-Digest", "")
            if answer.status == 200 and is_digest(digest):
                return digest
            if answer.status in (200, 405):
                # The digest header is optional (spec, "Pulling manifests") and some old servers know no HEAD.
                answer = await self._ask("GET", manifest, headers)
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise _refusal(reference, answer, credentials)
        return _digest(answer.body, reference.digest)

    async def close(self) -> None:
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _knock(self, reference: ImageReference) -> tuple[_Manifest, Answer]:
        """Ask without credentials, at the first endpoint that lets itself be connected to."""
        *others, last = (_Manifest(reference, endpoint) for endpoint in self._hosts.endpoints(reference.host))
        for manifest in others:
            try:
                return manifest, await self._head(manifest, {})
            except aiohttp.ClientConnectorError:
                continue
        return last, await self._head(last, {})

    async def _head(self, manifest: _Manifest, headers: dict[str, str]) -> Answer:
        """HEAD, and once more after a 5xx that names no time: docker-registry 2.8 has such moments while many push."""
        answer = await self._ask("HEAD", manifest, headers)
        if answer.status < 500 or "Retry-After" in answer.headers:
            return answer
        await asyncio.sleep(HEAD_AGAIN_S)
        return await self._ask("HEAD", manifest, headers)

    async def _ask(self, method: str, manifest: _Manifest, headers: dict[str, str]) -> Answer:
        return await self._transport.fetch(
            method,
            manifest.url,
            {"Accept": ", ".join(MANIFEST_TYPES), **headers},
            tls=manifest.endpoint.tls,
            body_max_bytes=MANIFEST_MAX_BYTES,
        )

    async def _authorization(self, manifest: _Manifest, answer: Answer, credentials: Credentials | None) -> str:
        challenges = parse_challenges(answer.headers.getall("WWW-Authenticate", []))
        access = Access(manifest.reference.host, manifest.reference.path, "pull")
        return await self._authenticator.answer(challenges, access, credentials, manifest.endpoint)


def _refusal(reference: ImageReference, answer: Answer, credentials: Credentials | None) -> Fault:
    redact = Redactor([credentials.password] if credentials else [])
    return refusal(
        reference.host,
        answer.status,
        what=f"manifest of {reference}",
        detail=redact(detail(answer.body)),
        retry_after=answer.headers.get("Retry-After"),
    )


def _digest(body: bytes, wanted: str | None) -> str:
    """The digest of raw manifest bytes, in the algorithm of the digest that was asked for."""
    algorithm = wanted.partition(":")[0] if wanted else "sha256"
    return f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}"
