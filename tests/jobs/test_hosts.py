"""Which hosts each kind cannot do without, by the names that circuits have for them."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from imagejobd.jobs.build import BuildKind
from imagejobd.jobs.dispatch.kind import DispatchKind
from imagejobd.jobs.dispatch.payload import DispatchSettings
from imagejobd.jobs.distribute.kind import DistributeKind
from imagejobd.jobs.distribute.spec import DistributeSettings
from imagejobd.jobs.run import RunKind
from imagejobd.model.job import Job

BUILD = {"image": "Registry.Example:5000/app:1", "tar_url": "https://Files.Example:443/c.tar"}
SOURCE = {"endpoint": "https://Source.Example:443/v2/", "image": "app", "ref": "1"}
DISTRIBUTE = {"source": SOURCE, "targets": [{"endpoint": "target.example"}]}
UUID = "01900000-0000-7000-8000-000000000000"
PUSHED = f"registry.example/x/7:{UUID}"
BUILT = {"checked": {"what": "context", "media_type": "t", "context": {"digest": None, "dockerfile": ""}}}
FILE = {"checked": {"what": "file", "media_type": "t", "context": None}}


def job(spec: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> Job:
    empty: dict[str, Any] = dict.fromkeys(Job.__struct_fields__)
    return Job(**(empty | {"uuid": UUID, "tenant": "7", "spec": dict(spec), "checkpoint": dict(checkpoint)}))


def distribution(_tools: Any) -> DistributeKind:
    unused: Any = None
    return DistributeKind(unused, unused, DistributeSettings())


@pytest.mark.parametrize(
    ("kind", "spec", "checkpoint", "hosts"),
    [
        (BuildKind, BUILD, {}, {"registry.example:5000", "files.example"}),
        (BuildKind, BUILD, {"context": {"digest": "x", "dockerfile": ""}}, {"registry.example:5000"}),
        (BuildKind, BUILD, {"pushed": {"registry.example:5000/app:1": "sha256:x"}}, set()),
        (BuildKind, {"image": "app", "tar_url": "http://files.example/c"}, {}, {"docker.io", "files.example:80"}),
        (RunKind, {"dockerfile": "FROM scratch"}, {}, set()),
        (DispatchKind, {}, {}, set()),
        (DispatchKind, {}, FILE, set()),
        (DispatchKind, {}, BUILT, {"registry.example"}),
        (DispatchKind, {}, {**BUILT, "pushed": {PUSHED: "sha256:x"}}, set()),
        (distribution, DISTRIBUTE, {}, {"source.example"}),
        (distribution, {**DISTRIBUTE, "source": {**SOURCE, "endpoint": "http://h"}}, {}, {"h:80"}),
    ],
    ids=[
        "build", "fetched", "pushed", "hub", "run", "payload", "file", "to-push", "dispatched", "distribute", "http",
    ],
)  # fmt: skip
def test_hosts(kind: Any, spec: Mapping[str, Any], checkpoint: Mapping[str, Any], hosts: set[str]) -> None:
    """A job is held back for hosts that it needs next, and for no other."""
    settings = DispatchSettings(repository="registry.example/x")
    made = kind(SimpleNamespace(building=None, settings=settings))
    assert set(made.hosts(job(spec, checkpoint))) == hosts
