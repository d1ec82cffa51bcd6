"""Which hosts each kind cannot do without, by the names that circuits have for them."""

from collections.abc import Mapping
from typing import Any

import pytest

from harness.building import parsing_builder
from imagejobd.jobs.build import BuildKind, BuildSettings
from imagejobd.jobs.dispatch import DispatchKind, DispatchSettings
from imagejobd.jobs.distribute.kind import DistributeKind
from imagejobd.jobs.distribute.spec import DistributeSettings
from imagejobd.jobs.run import RunKind, RunSettings
from imagejobd.model.egress import Egress
from imagejobd.model.job import Job
from imagejobd.model.kind import JobKind
from imagejobd.model.resolver import Resolver

BUILD = {"image": "Registry.Example:5000/app:1", "tar_url": "https://Files.Example:443/c.tar"}
SOURCE = {"endpoint": "https://Source.Example:443/v2/", "image": "app", "ref": "1"}
DISTRIBUTE = {"source": SOURCE, "targets": [{"endpoint": "target.example"}]}
BUILDER = parsing_builder()
BUILD_KIND, RUN_KIND = BuildKind(BUILDER, Egress(), Resolver(), BuildSettings()), RunKind(BUILDER, RunSettings())
DISPATCH_KIND = DispatchKind(BUILDER, DispatchSettings(repository="registry.example/x"))
DISTRIBUTE_KIND = DistributeKind(BUILDER, BUILDER, DistributeSettings())
UUID = "01900000-0000-7000-8000-000000000000"
PUSHED = f"registry.example/x/7:{UUID}"
BUILT = {"checked": {"what": "context", "media_type": "t", "context": {"digest": None, "dockerfile": ""}}}
FILE = {"checked": {"what": "file", "media_type": "t", "context": None}}


def job(spec: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> Job:
    empty: dict[str, Any] = dict.fromkeys(Job.__struct_fields__)
    return Job(**(empty | {"uuid": UUID, "tenant": "7", "spec": dict(spec), "checkpoint": dict(checkpoint)}))


@pytest.mark.parametrize(
    ("kind", "spec", "checkpoint", "hosts"),
    [
        (BUILD_KIND, BUILD, {}, {"registry.example:5000", "files.example"}),
        (BUILD_KIND, BUILD, {"context": {"digest": "x", "dockerfile": ""}}, {"registry.example:5000"}),
        (BUILD_KIND, BUILD, {"pushed": {"registry.example:5000/app:1": "sha256:x"}}, set()),
        (BUILD_KIND, {"image": "app", "tar_url": "http://files.example/c"}, {}, {"docker.io", "files.example:80"}),
        (RUN_KIND, {"dockerfile": "FROM scratch"}, {}, set()),
        (DISPATCH_KIND, {}, {}, set()),
        (DISPATCH_KIND, {}, FILE, set()),
        (DISPATCH_KIND, {}, BUILT, {"registry.example"}),
        (DISPATCH_KIND, {}, {**BUILT, "pushed": {PUSHED: "sha256:x"}}, set()),
        (DISTRIBUTE_KIND, DISTRIBUTE, {}, {"source.example"}),
        (DISTRIBUTE_KIND, {**DISTRIBUTE, "source": {**SOURCE, "endpoint": "http://h"}}, {}, {"h:80"}),
    ],
    ids=[
        "build", "fetched", "pushed", "hub", "run", "payload", "file", "to-push", "dispatched", "distribute", "http",
    ],
)  # fmt: skip
def test_hosts(kind: JobKind, spec: Mapping[str, Any], checkpoint: Mapping[str, Any], hosts: set[str]) -> None:
    """A job is held back for hosts that it needs next, and for no other."""
    assert set(kind.hosts(job(spec, checkpoint))) == hosts
