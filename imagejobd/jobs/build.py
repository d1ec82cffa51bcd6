"""The `build` kind: fetch → build → push → purge, each phase resumable from its checkpoint.

A build has exactly one source of its context: `dockerfile` (text, alone), an uploaded tar, or `tar_url`. Passwords and
the query of a URL, where tokens hide, go to the job's secrets; the stored spec has neither.
"""

import re
from collections.abc import AsyncIterable, Collection, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Literal

import msgspec

from imagejobd.archive import ContextBounds, parse_dockerfile_path
from imagejobd.jobs.shared.builder import BuildingKind, BuildOptions, ImageBuilder
from imagejobd.jobs.shared.context import Context, bare_url, fetch, keep_context, parse_url
from imagejobd.jobs.shared.progress import percent
from imagejobd.model.bounds import GIB, Bytes, Count, Seconds
from imagejobd.model.circuit import peer_name
from imagejobd.model.egress import Egress
from imagejobd.model.errors import ErrorCode, Permanent, invalid
from imagejobd.model.failpoint import failpoint
from imagejobd.model.job import Job, Json, NewJob
from imagejobd.model.kind import Accepted, JobContext, Upload
from imagejobd.model.ownership import LABEL_PREFIX, refuse_reserved
from imagejobd.model.reference import ImageReference
from imagejobd.model.resolver import Resolver
from imagejobd.model.secrets import Credentials, Secret
from imagejobd.registry.address import host_of, peer_of
from imagejobd.registry.errors import Unanswered

PASSWORD = "password"  # noqa: S105 - the name of a secret, not one
TAR_URL = "tar_url"

TAGS_MAX = 20
BUILD_ARGS_MAX = 100
LABELS_MAX = 100
VALUE_MAX_CHARS = 4096

# os, os/architecture or os/architecture/variant.
_PLATFORM = re.compile(r"[a-z0-9._-]{1,32}(?:/[a-z0-9._-]{1,32}){0,2}")


class BuildSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[kinds.build]`. Fetching and pushing may take `fetch_timeout_s` and `push_timeout_s` without progress, the other
    phases as long in all, without the time in which the engine is away."""

    upload_max_bytes: Bytes = 2 * GIB
    context_max_bytes: Bytes = 4 * GIB
    context_max_entries: Count = 200_000
    fetch_timeout_s: Seconds = 1800.0
    fetch_idle_s: Seconds = 30.0
    fetch_redirects_max: Count = 5
    build_timeout_s: Seconds = 2 * 3600.0
    push_timeout_s: Seconds = 3600.0
    purge_timeout_s: Seconds = 300.0

    @property
    def bounds(self) -> ContextBounds:
        return ContextBounds(max_bytes=self.context_max_bytes, max_entries=self.context_max_entries)


class BuildOrder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to build. `dockerfile_path` is where in the context the Dockerfile is, None for the usual names.

    `tags` are further tags of the same repository; `pull` says when bases are pulled.
    """

    image: str
    dockerfile: str | None = None
    dockerfile_path: str | None = None
    tar_url: str | None = None
    username: str | None = None
    nocache: bool = False
    tags: tuple[str, ...] = ()
    build_args: dict[str, str] = {}
    target: str | None = None
    labels: dict[str, str] = {}
    platform: str | None = None
    pull: Literal["missing", "always", "never"] = "missing"


class BuildInput(BuildOrder, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A caller's spec. It has exactly one source: `dockerfile`, `tar_url`, or the context that comes with it."""

    password: str | None = None


class BuildSpec(BuildOrder, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A build as it is stored. `context` is the digest of a checked tar in the content store, whose Dockerfile is
    `dockerfile`."""

    context: str | None = None

    @property
    def references(self) -> list[ImageReference]:
        """Every reference to push, without repetition: the image, then its further tags."""
        image = ImageReference.parse(self.image)
        return list(dict.fromkeys([image, *(image.with_tag(tag) for tag in self.tags)]))

    def credentials(self, secrets: Mapping[str, Secret]) -> Credentials | None:
        """The request's own credentials for the host of `image`."""
        if PASSWORD not in secrets:
            return None
        return Credentials(self.username or "", secrets[PASSWORD])


class BuildKind(BuildingKind):
    name = "build"

    def __init__(self, builder: ImageBuilder, egress: Egress, names: Resolver, settings: BuildSettings) -> None:
        super().__init__(builder)
        self._egress = egress
        self._names = names
        self._settings = settings

    async def receive(self, body: AsyncIterable[bytes], spec: Json) -> Upload:
        """Take a request's tar. Raises `Permanent(invalid | too_large)` naming the member."""
        dockerfile_path = spec.get("dockerfile_path") or None
        if not isinstance(dockerfile_path, str | None):
            raise invalid("spec.dockerfile_path must be a string: where in the context the Dockerfile is")
        context = await self._take_in(body, dockerfile_path)
        digest = str(context.digest)
        return Upload(fields={"context": digest, "dockerfile": context.dockerfile}, blobs=(digest,))

    def parse(self, spec: Json, upload: Upload | None = None) -> Accepted:
        """Raises `Permanent(invalid | policy)` that names the field, or the Dockerfile's line."""
        fields = {name: value for name, value in spec.items() if value not in (None, "")}
        if "context" in fields:
            raise invalid("spec.context is set by the daemon; send the tar as the context of the request")
        try:
            request = msgspec.convert(fields, BuildInput)
        except msgspec.ValidationError as error:
            raise invalid(f"spec: {error}") from None
        _check_names(request)
        _check_sizes(request)
        _check_source(request, upload)
        dockerfile = request.dockerfile if upload is None else upload.fields["dockerfile"]
        if dockerfile is None:
            self._builder.policy.check_build_args(request.build_args)
        else:
            self._builder.policy.check(
                dockerfile,
                has_context=upload is not None,
                build_args=request.build_args,
                target=request.target or "",
                platform=request.platform or "",
                knows_heredocs=self._builder.knows_heredocs,
            )
        return _split(request, upload)

    def hosts(self, job: Job) -> Collection[str]:
        """The registry of the image, and where the context is while it has not been fetched."""
        spec = msgspec.convert(job.spec, BuildSpec)
        if _is_pushed(spec, job.checkpoint):
            return ()
        hosts = {peer_name(reference.host) for reference in spec.references}
        if spec.tar_url is not None and "context" not in job.checkpoint:
            hosts.add(peer_of(parse_url(spec.tar_url)))
        return hosts

    def images(self, job: NewJob) -> Iterable[ImageReference]:
        return msgspec.convert(job.spec, BuildSpec).references

    def read_secrets(self, spec: Json, values: Json) -> dict[str, Secret]:
        """The URL must be that of the job: of what can be read of it the spec keeps a copy."""
        secrets = super().read_secrets(spec, values)
        if TAR_URL in secrets and bare_url(parse_url(secrets[TAR_URL].reveal())) != spec.get(TAR_URL):
            raise invalid("secrets.tar_url is another URL than the job's; only user, password and query may differ")
        return secrets

    async def run(self, ctx: JobContext) -> Json:
        spec = msgspec.convert(ctx.job.spec, BuildSpec)
        builder, settings = self._builder, self._settings
        # After the last push the purge takes the image away: an attempt that resumes there has nothing to push.
        if not _is_pushed(spec, ctx.checkpoint):
            host = spec.references[0].host
            access = builder.access(ctx, login_host=host, login=spec.credentials(ctx.secrets))
            await builder.egress.check_registry(host)
            context = await self.fetch_context(ctx, spec)
            options = BuildOptions(
                timeout_s=settings.build_timeout_s,
                build_args=spec.build_args,
                target=spec.target or "",
                labels=spec.labels,
                platform=spec.platform or "",
                nocache=spec.nocache,
                pull=spec.pull,
            )
            built = await builder.build(ctx, options, context, access)
            await builder.push(ctx, spec.references, built, access, timeout_s=settings.push_timeout_s)
        await self.purge(ctx, timeout_s=settings.purge_timeout_s)
        image, digests = str(spec.references[0]), ctx.checkpoint["pushed"]
        return {
            "image": image,
            "digest": digests[image],
            "image_id": ctx.checkpoint["built"]["id"],
            "pushed": digests,
        }

    async def fetch_context(self, ctx: JobContext, spec: BuildSpec) -> Context:
        """The fetching phase; a context that an earlier attempt fetched is used again."""
        if spec.tar_url is None:
            return Context(spec.context, spec.dockerfile or "", spec.dockerfile_path)
        earlier = msgspec.convert(ctx.checkpoint.get("context"), Context | None)
        if earlier is not None and self._blobs.exists(str(earlier.digest)):
            return earlier
        host = host_of(parse_url(spec.tar_url))
        async with ctx.phase("fetching", timeout_s=self._settings.fetch_timeout_s, waits_for=host):
            await ctx.log(f"fetching {spec.tar_url}\n")
            secret = ctx.secrets.get(TAR_URL)
            context = await self._fetch(ctx, secret.reveal() if secret else spec.tar_url, spec.dockerfile_path)
            digest = str(context.digest)
            try:
                await ctx.save(blobs=[digest], context=msgspec.to_builtins(context))
            finally:
                self._blobs.release(digest)
        failpoint("after_fetch")
        return context

    async def _fetch(self, ctx: JobContext, url: str, dockerfile_path: str | None) -> Context:
        settings, registry = self._settings, self._builder.registry
        body = fetch(
            url,
            egress=self._egress,
            names=self._names,
            circuits=registry.circuits,
            max_bytes=settings.upload_max_bytes,
            idle_s=settings.fetch_idle_s,
            redirects_max=settings.fetch_redirects_max,
            progress=lambda received, total: ctx.progress(
                fetched_bytes=received, total_bytes=total, percent=percent(received, total)
            ),
        )
        try:
            async with aclosing(body):
                return await self._take_in(body, dockerfile_path)
        except Unanswered as fault:
            raise await registry.blamed(fault, fault.silent) from None

    async def _take_in(self, body: AsyncIterable[bytes], dockerfile_path: str | None) -> Context:
        async with self._blobs.spooled(body, max_bytes=self._settings.upload_max_bytes) as raw:
            return await keep_context(self._blobs, raw, self._settings.bounds, dockerfile_path)


def _is_pushed(spec: BuildSpec, checkpoint: Mapping[str, Any]) -> bool:
    pushed: Mapping[str, str] = checkpoint.get("pushed", {})
    return pushed.keys() >= {str(reference) for reference in spec.references}


def _check_names(request: BuildInput) -> None:
    image = ImageReference.parse(request.image)
    if image.digest:
        raise invalid(f"image {request.image!r}: a build is pushed to a tag; a digest cannot be chosen")
    refuse_reserved("image", image)
    for tag in request.tags:
        image.with_tag(tag)
    for label in request.labels:
        if label.startswith(LABEL_PREFIX):
            raise Permanent(
                ErrorCode.POLICY, f"spec.labels: {label[:80]!r}: {LABEL_PREFIX}* is reserved for the service itself"
            )
    if request.platform is not None and not _PLATFORM.fullmatch(request.platform):
        raise invalid(f"spec.platform: {request.platform[:80]!r} is not a platform, such as linux/amd64")
    if (request.username is None) != (request.password is None):
        raise invalid("username and password belong together; one of them is missing")


def _check_source(request: BuildInput, upload: Upload | None) -> None:
    if (request.dockerfile is not None) + (request.tar_url is not None) + (upload is not None) != 1:
        raise invalid("a build needs exactly one of: spec.dockerfile, an uploaded context tar, spec.tar_url")
    if request.dockerfile_path is None:
        return
    if request.dockerfile is not None:
        why = "names a file of the context, and spec.dockerfile comes without one; leave out one of the two"
        raise invalid(f"spec.dockerfile_path {why}")
    parse_dockerfile_path(request.dockerfile_path)


def _check_sizes(request: BuildInput) -> None:
    for name, count, most in (
        ("tags", len(request.tags), TAGS_MAX),
        ("build_args", len(request.build_args), BUILD_ARGS_MAX),
        ("labels", len(request.labels), LABELS_MAX),
    ):
        if count > most:
            raise invalid(f"spec.{name} has {count} entries; the limit is {most}")
    for name, values in (("build_args", request.build_args), ("labels", request.labels)):
        for key, value in values.items():
            if not key or len(key) + len(value) > VALUE_MAX_CHARS:
                raise invalid(f"spec.{name}: {key[:80]!r} is empty or longer than {VALUE_MAX_CHARS} characters")
    for name, text in (("target", request.target), ("username", request.username), ("password", request.password)):
        if text is not None and len(text) > VALUE_MAX_CHARS:
            raise invalid(f"spec.{name} is {len(text)} characters long; the limit is {VALUE_MAX_CHARS}")


def _split(request: BuildInput, upload: Upload | None) -> Accepted:
    """Separate what may be read by everybody from what may not."""
    secrets: dict[str, Secret] = {}
    changes: dict[str, str] = {}
    if request.password is not None:
        secrets[PASSWORD] = Secret(request.password)
    if request.tar_url is not None:
        url = parse_url(request.tar_url)
        changes["tar_url"] = bare_url(url)
        # One without user and query is no secret, and would be masked wherever the log has it.
        if changes["tar_url"] != str(url):
            secrets[TAR_URL] = Secret(request.tar_url)
    stored = msgspec.to_builtins(request) | changes | (upload.fields if upload else {})
    del stored["password"]
    return Accepted(
        spec={name: value for name, value in stored.items() if value or value is False},
        secrets=secrets,
        blobs=upload.blobs if upload else (),
    )
