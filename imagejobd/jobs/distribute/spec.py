"""What a distribution is asked to do: the caller's spec, checked, and what of it is stored.

The names are those of the distribute API's own document (`endpoint`, `image`, `ref`, `overwrite`, `verify_tls`,
`auth`), with more of them. Everything under `auth` goes to the job's secrets whole; the stored spec has none of it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from imagejobd.jobs.distribute.auth import login, parse_auth, secret_words
from imagejobd.jobs.distribute.fields import (
    NAME_MAX_CHARS,
    Endpoint,
    FieldFault,
    below,
    convert,
    items,
    parse_endpoint,
    parse_path,
    path_at,
    read_fields,
    wrong,
)
from imagejobd.jobs.distribute.tags import TagFilter, check_filter
from imagejobd.model.bounds import GIB, MIB, Bytes, Count, Seconds
from imagejobd.model.errors import invalid
from imagejobd.model.job import Json
from imagejobd.model.kind import Accepted
from imagejobd.model.reference import ImageReference, is_digest, is_tag
from imagejobd.model.secrets import Secret
from imagejobd.registry.hosts import RegistryTarget

TARGETS_MAX = 100
IMAGES_MAX = 1_000
TAGS_MAX = 20
PLATFORMS_MAX = 50
# Each is looked for in every line that the job logs.
SECRET_WORDS_MAX = 1_000
SOURCE_AUTH = "auth.source"

_PLATFORM = re.compile(r"[a-z0-9._-]{1,32}/[a-z0-9._-]{1,32}(?:/[a-z0-9._-]{1,32})?")

S = TypeVar("S", "Source", "Target")


class DistributeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[kinds.distribute]`. At most `streams_max` large blobs are read at once from one source host, with
    `window_bytes` of each in memory. Listing may take `listing_timeout_s` without progress.
    """

    streams_max: Count = 4
    window_bytes: Bytes = 4 * MIB
    spool_max_bytes: Bytes = 20 * GIB
    copies_max: Count = 2_000
    listing_timeout_s: Seconds = 600.0


COPIES_MAX = DistributeSettings().copies_max


class Image(msgspec.Struct, frozen=True):
    """One image of the source: the repository, and a tag or digest in it."""

    path: str
    name: str

    def __str__(self) -> str:
        return f"{self.path}{'@' if is_digest(self.name) else ':'}{self.name}"


class Place(msgspec.Struct, frozen=True):
    """Where an image goes at one target: the repository, and tags or one digest in it."""

    path: str
    names: tuple[str, ...]


class Source(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`endpoint` is a registry; with it exactly one of: `image` + `ref` (tag or digest), `image` + `tags`, or `images`
    (`path:tag` or `path@digest`, several)."""

    endpoint: str
    image: str | None = None
    ref: str | None = None
    tags: TagFilter | None = None
    images: tuple[str, ...] = ()
    verify_tls: bool | None = None

    @property
    def registry(self) -> Endpoint:
        return parse_endpoint(self.endpoint, "source.endpoint")

    @property
    def repository(self) -> str | None:
        """The path of `image`, where there is one."""
        return None if self.image is None else parse_path(self.image, self.registry.host, "source.image")

    @property
    def listed(self) -> tuple[Image, ...]:
        """The images that are named one by one; none where a tag filter finds them."""
        if self.repository is not None:
            return () if self.ref is None else (Image(self.repository, self.ref),)
        host = self.registry.host
        return tuple(_parse_image(text, host, f"source.images[{index}]") for index, text in enumerate(self.images))


class Target(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`image` renames (one repository only); `ref` or `tags` rename the tag (one image only)."""

    endpoint: str
    image: str | None = None
    ref: str | None = None
    tags: tuple[str, ...] = ()
    overwrite: bool = False
    verify_tls: bool | None = None

    @property
    def registry(self) -> Endpoint:
        return parse_endpoint(self.endpoint, "endpoint")

    @property
    def renames(self) -> tuple[str, ...]:
        """The names that `ref` or `tags` give, each once."""
        return (self.ref,) if self.ref is not None else tuple(dict.fromkeys(self.tags))

    def places(self, images: Sequence[Image]) -> list[Place]:
        """Where each of `images` goes at this target."""
        host = self.registry.host
        renamed_path = None if self.image is None else parse_path(self.image, host, "image")
        renames = self.renames
        return [Place(renamed_path or path_at(host, image.path), renames or (image.name,)) for image in images]


class DistributeSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A distribution as it is stored. A caller's has `auth` in `source` and in `targets` too."""

    source: Source
    targets: tuple[Target, ...]
    platforms: tuple[str, ...] = ()
    referrers: bool = False
    dry_run: bool = False


def parse(spec: Json, *, copies_max: int = COPIES_MAX) -> Accepted:
    """Check a caller's spec. Raises `FieldFault`, a `Permanent(invalid)` that names the field."""
    source_auth, auths = None, list[Secret | None]()
    fields = read_fields(spec, "")
    if "source" in fields:
        fields["source"], source_auth = _without_auth(fields["source"], Source, "source")
    if "targets" in fields:
        targets = enumerate(items(fields["targets"], "targets", most=TARGETS_MAX))
        pairs = [_without_auth(target, Target, f"targets[{index}]") for index, target in targets]
        fields["targets"], auths = [target for target, _ in pairs], [auth for _, auth in pairs]
    request = convert(fields, DistributeSpec, "")
    _check_source(request.source, copies_max)
    if len(request.platforms) > PLATFORMS_MAX:
        raise wrong("platforms", f"has {len(request.platforms)} entries; the limit is {PLATFORMS_MAX}")
    for index, platform in enumerate(request.platforms):
        if not _PLATFORM.fullmatch(platform):
            raise wrong(f"platforms[{index}]", "is not os/architecture[/variant], such as linux/arm/v7")
    images = request.source.listed
    for index, target in enumerate(request.targets):
        _check_target(request, images, target, f"targets[{index}]")
    # Which tags a filter finds is not known yet: one repository may then take them once.
    images = images or (Image(request.source.repository or "", ""),)
    distinct = _distinct(request.targets, auths, images[0])
    _check_copies(request, images, distinct, copies_max)
    secrets = {target_auth(place): auth for place, index in enumerate(distinct) if (auth := auths[index]) is not None}
    if source_auth is not None:
        secrets[SOURCE_AUTH] = source_auth
    _check_words(secrets)
    stored = msgspec.to_builtins(request)
    stored["targets"] = [stored["targets"][index] for index in distinct]
    return Accepted(spec=_pruned(stored), secrets=secrets)


def read_auths(values: Json) -> dict[str, Secret]:
    """`auth` blocks that are given once more, or JSON texts of them, by the names of the secrets that they are. Raises
    `Permanent(invalid)` that names the field."""
    secrets: dict[str, Secret] = {}
    try:
        for name, value in values.items():
            field = f"secrets.{name[:NAME_MAX_CHARS]}"
            secret = parse_auth(_decoded(value), field)
            if secret is None:
                raise wrong(field, "must be an auth block, as it stands in source and targets[]")
            secrets[name] = secret
        _check_words(secrets)
    except FieldFault as fault:
        raise invalid(f"{fault.field or 'secrets'}: {fault.why}") from None
    return secrets


def references(spec: DistributeSpec) -> Iterator[ImageReference]:
    """What is copied and where to, of the first image where there are several to each target; then all that is copied.
    What a tag filter finds is known by its repository."""
    images = spec.source.listed or (Image(spec.source.repository or "", ""),)
    yield _reference(spec.source.registry.host, images[0].path, images[0].name)
    for target in spec.targets:
        for place in target.places(images[:1]):
            for name in place.names:
                yield _reference(target.registry.host, place.path, name)
    for image in images[1:]:
        yield _reference(spec.source.registry.host, image.path, image.name)


def target_auth(index: int) -> str:
    """The name of the secret that holds a target's `auth`."""
    return f"auth.target.{index}"


def site_of(place: Source | Target, auth: Secret | None) -> RegistryTarget:
    """The registry of a stored source or target with its `auth`, as the registry client takes it."""
    registry, field = place.registry, "source" if isinstance(place, Source) else "targets[]"
    return RegistryTarget(
        host=registry.host,
        scheme=registry.scheme,
        verify_tls=place.verify_tls,
        login=login(auth),
        login_hint=f"give the login in {field}.auth.basicauth (user, password)",
    )


def _without_auth(value: Any, kind: type[S], path: str) -> tuple[S, Secret | None]:
    """A source or target, and its `auth`."""
    fields = read_fields(value, path)
    auth = parse_auth(fields.pop("auth"), below(path, "auth")) if "auth" in fields else None
    for name, most in (("images", IMAGES_MAX), ("tags", TAGS_MAX)):
        if isinstance(fields.get(name), list | tuple):
            fields[name] = items(fields[name], below(path, name), most=most)
    return convert(fields, kind, path), auth


def _decoded(value: Any) -> Any:
    """What a text means, where it is JSON; who keeps secrets in files sends them as text."""
    try:
        return msgspec.json.decode(value) if isinstance(value, str) else value
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return value


def _reference(host: str, path: str, name: str) -> ImageReference:
    if is_digest(name):
        return ImageReference(host, path, digest=name)
    return ImageReference(host, path, tag=name or None)


def _check_words(auths: Mapping[str, Secret]) -> None:
    if len(set().union(*map(secret_words, auths.values()))) > SECRET_WORDS_MAX:
        raise wrong("", f"its auth blocks hold more than {SECRET_WORDS_MAX} different strings")


def _check_source(source: Source, copies_max: int) -> None:
    host = source.registry.host
    if source.images:
        for name in ("image", "ref", "tags"):
            if getattr(source, name) is not None:
                raise wrong(f"source.{name}", "does not go with images, which name repositories and tags already")
        if len(set(source.images)) < len(source.images):
            raise wrong("source.images", "names an image twice")
        return
    if source.image is None:
        raise FieldFault.missing("source.image", "an image with its ref or tags, or images")
    parse_path(source.image, host, "source.image")
    if source.ref is not None and source.tags is not None:
        raise wrong("source.tags", "does not go with ref: one tag, or a filter over all of them")
    if source.tags is not None:
        check_filter(source.tags, "source.tags", newest_max=copies_max)
    elif source.ref is None:
        raise FieldFault.missing("source.ref", "the tag or digest to copy, or tags")
    else:
        _check_name(source.ref, "source.ref")


def _check_target(request: DistributeSpec, images: Sequence[Image], target: Target, path: str) -> None:
    host = parse_endpoint(target.endpoint, f"{path}.endpoint").host
    if target.image is not None:
        parse_path(target.image, host, f"{path}.image")
        if len({image.path for image in images}) > 1:
            raise wrong(f"{path}.image", "can rename one repository only; the source has several")
    if target.ref is not None and target.tags:
        raise wrong(f"{path}.tags", "does not go with ref; name all tags in tags")
    field = f"{path}.{'ref' if target.ref is not None else 'tags'}"
    if target.renames and len(images) != 1:
        raise wrong(field, "can rename one image only; the source has several")
    for name in target.renames:
        _check_name(name, field)
        if is_digest(name) and name != images[0].name:
            raise wrong(field, "must be a tag: the digest is that of the source")
    if request.platforms and any(is_digest(name) for name in target.renames or [image.name for image in images]):
        raise wrong(
            field if target.renames else f"{path}.ref",
            "must be given as a tag: with platforms the index, and so its digest, may become another",
        )


def _distinct(targets: Sequence[Target], auths: Sequence[Secret | None], image: Image) -> list[int]:
    """The targets' indices without those that are named again: where one of the images goes to the same place, all do.

    Raises `FieldFault` where the second time says another thing of how to get there or what may be done there.
    """
    indices: dict[tuple[str, str, frozenset[str]], int] = {}
    for index, target in enumerate(targets):
        [place] = target.places([image])
        same = (target.registry.key, place.path, frozenset(place.names))
        first = indices.setdefault(same, index)
        if first == index:
            continue
        options = [(targets[i].overwrite, targets[i].verify_tls, auths[i]) for i in (first, index)]
        schemes = [targets[i].registry.scheme for i in (first, index)]
        if options[0] != options[1] or (None not in schemes and schemes[0] != schemes[1]):
            why = f"is targets[{first}] named twice, with another scheme, overwrite, verify_tls or auth: name it once"
            raise wrong(f"targets[{index}]", why)
        if schemes[0] is None and schemes[1] is not None:  # it says more
            indices[same] = index
    return list(indices.values())


def _check_copies(request: DistributeSpec, images: Sequence[Image], indices: Sequence[int], copies_max: int) -> None:
    """Every copy to one of the targets at `indices` goes to a place of its own, which is not where it comes from."""
    targets = {index: request.targets[index] for index in indices}
    copies = len(images) * sum(max(1, len(target.renames)) for target in targets.values())
    if copies > copies_max:
        raise wrong("targets", f"asks for {copies} copies; the limit is kinds.distribute.copies_max = {copies_max}")
    source_key = request.source.registry.key
    sources = {(source_key, image.path, image.name) for image in images}
    places: set[tuple[str, str, str]] = set()
    for index, target in targets.items():
        key = target.registry.key
        for path, name in [(place.path, name) for place in target.places(images) for name in place.names]:
            if (key, path, name) in sources:
                raise wrong(f"targets[{index}]", f"copies onto itself: {path} is read from there")
            if (key, path, name) in places:
                raise wrong(f"targets[{index}]", f"is named twice: something else goes to {path} there already")
            places.add((key, path, name))


def _parse_image(text: str, host: str, field: str) -> Image:
    path, mark, name = text.partition("@")
    if not mark:
        path, mark, name = text.rpartition(":")
    if not mark:
        raise wrong(field, "needs a tag or a digest: path:tag or path@digest")
    _check_name(name, field)
    return Image(parse_path(path, host, field), name)


def _check_name(name: str, field: str) -> None:
    if not is_tag(name) and not is_digest(name):
        raise wrong(
            field,
            "is neither a tag (at most 128 of A-Z a-z 0-9 _ . - and not '.' or '-' first) nor a digest "
            "(sha256: and 64 hex digits)",
        )


def _pruned(value: Any) -> Any:
    """Without what was not given."""
    if isinstance(value, dict):
        return {name: _pruned(item) for name, item in value.items() if item is not None and item != ()}
    return [_pruned(item) for item in value] if isinstance(value, list | tuple) else value
