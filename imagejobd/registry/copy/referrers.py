"""What refers to an image and should travel with it: signatures, SBOMs, attestations.

Found by the referrers API or its fallback tag (distribution spec, "Listing Referrers"), and by cosign's tags, which are
older than both. At the target they are there before the image's own tag is, so nobody meets the image without them.
"""

from collections.abc import Awaitable, Callable, Sequence

import msgspec

from imagejobd.model.concurrency import KeyedLock, bounded
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.registry.copy.plan import Tree
from imagejobd.registry.copy.target import TargetState
from imagejobd.registry.manifest import OCI_INDEX, Descriptor, Manifest, parse_manifest
from imagejobd.registry.repository import Repository, fallback_tag

COSIGN_SUFFIXES = ("sig", "att", "sbom")
REFERRERS_MAX = 1_000
# Who attests each platform of an image does so for a handful, not for a thousand.
SUBJECTS_MAX = 100
ASKING_MAX = 16


class Referrers(msgspec.Struct, frozen=True):
    """`by_subject`: manifests that refer to a digest, from the API; `tagged`: cosign's tags and what they point at."""

    by_subject: dict[str, tuple[Descriptor, ...]] = {}
    tagged: dict[str, Descriptor] = {}

    @property
    def descriptors(self) -> list[Descriptor]:
        """All that has to be there, each once."""
        listed = [descriptor for found in self.by_subject.values() for descriptor in found]
        return list({descriptor.digest: descriptor for descriptor in (*listed, *self.tagged.values())}.values())


def subjects(manifest: Manifest) -> list[str]:
    """The digests that something may refer to: the image's, and those of its platforms unless they are too many."""
    children = [child.digest for child in manifest.children]
    return [manifest.digest, *(children if len(children) <= SUBJECTS_MAX else ())]


async def find_referrers(source: Repository, digests: Sequence[str]) -> Referrers:
    """What refers to `digests`, and to that in turn. Raises `Permanent(too_large)` beyond `REFERRERS_MAX`."""
    by_subject: dict[str, tuple[Descriptor, ...]] = {}
    tagged: dict[str, Descriptor] = {}

    async def ask(digest: str) -> None:
        by_subject[digest] = await source.referrers(digest)
        for tag in _cosign_tags(digest):
            if found := await source.head_manifest(tag):
                tagged[tag] = found

    level = list(dict.fromkeys(digests))
    while level:
        if len(by_subject) + len(level) > REFERRERS_MAX:
            raise Permanent(ErrorCode.TOO_LARGE, f"{source}: more than {REFERRERS_MAX} manifests refer to the image")
        await bounded(level, ask, at_once=ASKING_MAX)
        found = [descriptor.digest for digest in level for descriptor in by_subject[digest]]
        level = [digest for digest in dict.fromkeys(found) if digest not in by_subject]
    return Referrers({digest: found for digest, found in by_subject.items() if found}, tagged)


async def commit_referrers(
    state: TargetState, tree: Tree, referrers: Referrers, tags: KeyedLock, say: Callable[[str], Awaitable[None]]
) -> None:
    """Make what refers to the image findable at the target; the manifests themselves are there already."""
    target = state.repository
    for subject, descriptors in referrers.by_subject.items():
        async with tags.take((target.connection.identity, target.path, fallback_tag(subject))):
            await _list_at(target, subject, descriptors)
    for tag, descriptor in referrers.tagged.items():
        there = await target.head_manifest(tag)
        if there is None or (there.digest != descriptor.digest and state.target.overwrite):
            await target.put_manifest(tag, await tree.manifest(descriptor))
        elif there.digest != descriptor.digest:
            await say(f"{target}:{tag} is there with another digest and is left as it is")


async def _list_at(target: Repository, subject: str, descriptors: Sequence[Descriptor]) -> None:
    """A registry without the API wants the client to keep the list (spec, "Pushing Manifests with Subject")."""
    listed = await target.referrers(subject)
    known = {descriptor.digest for descriptor in listed}
    new = [descriptor for descriptor in descriptors if descriptor.digest not in known]
    if new:
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [_entry(d) for d in (*listed, *new)]}
        await target.put_manifest(fallback_tag(subject), parse_manifest(msgspec.json.encode(index), OCI_INDEX))


def _entry(descriptor: Descriptor) -> dict[str, object]:
    entry = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
        "artifactType": descriptor.artifact_type,
        "annotations": dict(descriptor.annotations),
    }
    return {name: value for name, value in entry.items() if value or name == "size"}


def _cosign_tags(digest: str) -> list[str]:
    """Cosign names sha256 digests only: others would not fit into a tag."""
    return [f"{digest.replace(':', '-')}.{suffix}" for suffix in COSIGN_SUFFIXES if digest.startswith("sha256:")]
