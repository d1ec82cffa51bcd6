"""The second wall: BuildKit resolves what was judged and nothing else, and people read their own names for it."""

import pytest

from imagejobd.engine.build import BaseNames
from imagejobd.engine.stream import Step
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.ownership import NO_INSTALLATION, pin_repository

OWN = f"{pin_repository(NO_INSTALLATION, '01a1ff5e-df24-7b9d-83a3-f6962c5b17b1')}:base-{'a' * 32}-0"
OTHER = f"{pin_repository(NO_INSTALLATION, '01a1ff5e-df8e-7d4a-9d43-3a078d3ddcb6')}:base-{'b' * 32}-0"
DIGEST = "sha256:" + "0" * 64
NAMES = BaseNames({OWN: "busybox:1"})


def step(name: str) -> Step:
    return Step(number=1, name=name, state="started")


@pytest.mark.parametrize(
    "name",
    [
        f"[internal] load metadata for {OWN}",
        f"[1/2] FROM {OWN}@{DIGEST}",
        f"[stage 1/2] FROM {OWN}",
        f"FROM {OWN}",
        "[2/2] RUN echo FROM evil",
    ],
)
def test_what_is_pinned_may_be_resolved(name: str) -> None:
    """By its literal name, which is shown as the user's own."""
    NAMES.check(step(name))
    shown = NAMES.readable(step(name))
    assert isinstance(shown, Step)
    assert "imagejobd/" not in shown.name


@pytest.mark.parametrize(
    "name",
    [
        "[internal] load metadata for docker.io/library/evil:1",
        "[1/2] FROM docker.io/library/evil:1",
        "FROM evil",
        "resolve image config for docker-image://docker.io/docker/dockerfile:1",
        f"[internal] load metadata for {OTHER}",
        f"resolve image config for {OTHER}",
        f"[1/2] FROM {OTHER}/x",
        f"[1/2] FROM {OTHER.rpartition(':')[0]}:1",
    ],
)
def test_nothing_else_is_resolved(name: str) -> None:
    """Whatever else the engine looks for ends the build."""
    with pytest.raises(Permanent, match="not checked for this build") as caught:
        NAMES.check(step(name))
    assert caught.value.code is ErrorCode.POLICY


@pytest.mark.parametrize("name", [f"[1/2] FROM {OTHER}@{DIGEST}", f"FROM {OTHER}"])
def test_a_step_that_builds_share_has_the_name_of_one(name: str) -> None:
    """It is no other image than this build's own, and the other build's name is shown to nobody."""
    NAMES.check(step(name))
    shown = NAMES.readable(step(name))
    assert isinstance(shown, Step)
    assert shown.name.endswith("FROM a base of this build")
