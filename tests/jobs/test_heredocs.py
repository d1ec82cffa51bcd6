"""What the kinds that build say to a submitted heredoc, for which the engine may be too old."""

from pathlib import Path
from typing import Any

import pytest

from harness.building import image_builder
from harness.engine import PrivateEngine
from imagejobd.engine.client import Engine
from imagejobd.engine.settings import EngineSettings
from imagejobd.jobs.build import BuildKind, BuildSettings
from imagejobd.jobs.run import RunKind, RunSettings
from imagejobd.model.egress import Egress, EgressSettings
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.resolver import Resolver
from imagejobd.registry.client import RegistryClient
from imagejobd.store.blobs import BlobStore

DOCKERFILE = "FROM scratch\nCOPY <<CMD /x\nCOPY --from=evil a b\nCMD\n"


def kinds(
    engine: Engine, registry: RegistryClient, egress: Egress, blobs: BlobStore
) -> list[tuple[BuildKind | RunKind, dict[str, Any]]]:
    """Each kind that takes a Dockerfile, with the rest of a spec."""
    builder = image_builder(engine, registry, blobs, egress=egress)
    build, run = BuildKind(builder, egress, Resolver(), BuildSettings()), RunKind(builder, RunSettings())
    return [(build, {"image": "app"}), (run, {})]


async def test_heredocs_are_refused_as_soon_as_the_engine_is_known(engine: PrivateEngine, tmp_path: Path) -> None:
    """The classic builder takes them for instructions in every version; before an engine has answered nothing is
    asked, and the job judges."""
    egress = Egress(EgressSettings(deny=()))
    async with (
        Engine(EngineSettings(host=engine.host, builder="classic")) as client,
        RegistryClient({}, egress) as registry,
    ):
        each = kinds(client, registry, egress, BlobStore(tmp_path))
        for kind, rest in each:
            kind.parse({"dockerfile": DOCKERFILE, **rest})
        await client.ping()
        for kind, rest in each:
            kind.parse({"dockerfile": "FROM scratch\nENV a=b\n", **rest})
            with pytest.raises(Permanent, match="Dockerfile line 2: COPY: heredocs") as caught:
                kind.parse({"dockerfile": DOCKERFILE, **rest})
            assert caught.value.code == ErrorCode.POLICY
