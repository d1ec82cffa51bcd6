"""What the `run` kind takes, and which bounds an operator may set."""

from typing import Any

import msgspec
import pytest

from harness.building import parsing_builder
from imagejobd.dockerfile.policy import DOCKERFILE_MAX_BYTES
from imagejobd.jobs.run import RunKind, RunSettings
from imagejobd.model.errors import ErrorCode, Permanent

parse = RunKind(parsing_builder(), RunSettings()).parse


def refusal(**spec: Any) -> Permanent:
    with pytest.raises(Permanent) as caught:
        parse(spec)
    return caught.value


def test_a_dockerfile_is_kept_as_it_is() -> None:
    """The text is stored byte for byte: what is built is what was judged."""
    text = "\n# hello\r\nFROM scratch\nLABEL a=b\n\n"
    accepted = parse({"dockerfile": text})
    assert accepted.spec == {"dockerfile": text}
    assert not accepted.secrets
    assert not accepted.blobs


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({}, "spec: Object missing required field `dockerfile`"),
        ({"dockerfile": None}, "spec: Expected `str`, got `null` - at `$.dockerfile`"),
        ({"dockerfile": 7}, "spec: Expected `str`, got `int` - at `$.dockerfile`"),
        ({"dockerfile": ""}, "spec.dockerfile is empty"),
        ({"dockerfile": " \n\t"}, "spec.dockerfile is empty"),
        ({"dockerfile": "FROM scratch", "image": "x"}, "spec: Object contains unknown field `image`"),
    ],
)
def test_bad_specs(spec: dict[str, Any], reason: str) -> None:
    """Each refusal names the field."""
    fault = refusal(**spec)
    assert fault.code is ErrorCode.INVALID
    assert reason in fault.message


@pytest.mark.parametrize(
    ("dockerfile", "code", "line"),
    [
        ("# syntax=example.org/frontend\nFROM scratch\n", ErrorCode.POLICY, "line 1"),
        ("FROM scratch\nRUNN true\n", ErrorCode.INVALID, "line 2"),
    ],
    ids=["forbidden", "syntax"],
)
def test_policy_is_asked(dockerfile: str, code: ErrorCode, line: str) -> None:
    """A Dockerfile that is not allowed, or is none, is refused with its line."""
    fault = refusal(dockerfile=dockerfile)
    assert fault.code is code
    assert line in fault.message


def test_size_is_bounded() -> None:
    """A megabyte is taken, a byte more is not."""
    comment = "#" * 1022 + "\n\n"
    most = "FROM scratch\n" + comment * (DOCKERFILE_MAX_BYTES // len(comment) - 1)
    most += "\n" * (DOCKERFILE_MAX_BYTES - len(most))
    assert len(most) == DOCKERFILE_MAX_BYTES
    parse({"dockerfile": most})
    assert refusal(dockerfile=most + "\n").code is ErrorCode.TOO_LARGE


def test_version_is_known_when_a_run_is_submitted() -> None:
    """A base may be named by the version, which is only known to be some id."""
    parse({"dockerfile": "ARG version\nFROM example.org/base:${version:?}\n"})


@pytest.mark.parametrize(
    ("key", "value"),
    [("memory_bytes", 1024**2), ("cpus", 0.001), ("pids", 1), ("files", 63)],
    ids=["memory", "cpus", "pids", "files"],
)
def test_limits_under_which_nothing_runs_are_refused(key: str, value: float) -> None:
    """At start, naming the key, rather than by each job."""
    with pytest.raises(msgspec.ValidationError, match=rf"\$\.{key}"):
        msgspec.convert({key: value}, RunSettings)
