"""What a build may ask for, and what of it is stored in clear."""

from typing import Any

import msgspec
import pytest

from harness.building import parsing_builder
from imagejobd.dockerfile.policy import DOCKERFILE_MAX_BYTES
from imagejobd.jobs.build import VALUE_MAX_CHARS, BuildKind, BuildSettings, BuildSpec
from imagejobd.model.egress import Egress
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.kind import Accepted, Upload
from imagejobd.model.resolver import Resolver

MINIMAL = {"image": "registry.example/app", "dockerfile": "FROM scratch\n"}
DIGEST = "sha256:" + "0" * 64
parse = BuildKind(parsing_builder(), Egress(), Resolver(), BuildSettings()).parse

UPLOAD = Upload(fields={"context": DIGEST, "dockerfile": "FROM scratch\n"}, blobs=(DIGEST,))


def refusal(spec: dict[str, Any], upload: Upload | None = None) -> Permanent:
    with pytest.raises(Permanent) as refused:
        parse(spec, upload)
    return refused.value


def build_spec(accepted: Accepted) -> BuildSpec:
    """The stored spec as the phases of the build read it back."""
    return msgspec.convert(accepted.spec, BuildSpec)


def test_minimal_spec() -> None:
    """An image and a Dockerfile are enough; what was not asked for is not stored."""
    assert parse(MINIMAL) == Accepted({**MINIMAL, "nocache": False, "pull": "missing"})


def test_empty_values_are_absent() -> None:
    """Null and the empty string mean that a field was not given."""
    assert parse({**MINIMAL, "username": "", "password": None, "target": "", "tar_url": ""}) == parse(MINIMAL)


def test_every_option_is_kept() -> None:
    """All options come back from the store as they were asked for."""
    options = {
        "tags": ["1", "1.0"],
        "build_args": {"A": "b"},
        "target": "base",
        "labels": {"org.example": "x"},
        "platform": "linux/arm/v7",
        "nocache": True,
        "pull": "always",
    }
    stored = parse({"image": "app", "dockerfile": "FROM scratch AS base\n", **options}).spec
    assert {name: list(value) if isinstance(value, tuple) else value for name, value in stored.items()} == {
        "image": "app",
        "dockerfile": "FROM scratch AS base\n",
        **options,
    }


def test_references_are_pushed_once_each() -> None:
    """The image with its default tag, then the further tags, without repetition."""
    spec = build_spec(parse({**MINIMAL, "tags": ["2", "latest", "2"]}))
    assert [str(reference) for reference in spec.references] == [
        "registry.example/app:latest",
        "registry.example/app:2",
    ]


@pytest.mark.parametrize(
    ("wrong", "words"), [({"colour": "red"}, "colour"), ({"tags": "x"}, "tags"), ({"platform": "a b"}, "platform")]
)
@pytest.mark.parametrize("source", [{}, {"dockerfile": "FROM scratch", "tar_url": "http://a/b"}])
def test_wrong_fields_are_named_first(wrong: dict[str, Any], words: str, source: dict[str, Any]) -> None:
    """Who misspells the field of the source reads its name, not that there is no source."""
    assert words in refusal({"image": "app", **source, **wrong}).message


def test_dockerfile_path_is_kept() -> None:
    """With an upload or a URL it says where the Dockerfile is; the build reads it there again."""
    path = {"dockerfile_path": "docker/Dockerfile"}
    assert parse({"image": "app", **path}, UPLOAD).spec["dockerfile_path"] == "docker/Dockerfile"
    assert parse({"image": "app", "tar_url": "http://a/b", **path}).spec["dockerfile_path"] == "docker/Dockerfile"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"dockerfile": "FROM scratch", "dockerfile_path": "Dockerfile"}, "names a file of the context"),
        ({"tar_url": "http://a/b", "dockerfile_path": "../Dockerfile"}, "leads out of the context"),
        ({"tar_url": "http://a/b", "dockerfile_path": 7}, "dockerfile_path"),
    ],
)
def test_dockerfile_paths_that_cannot_be(spec: dict[str, Any], words: str) -> None:
    """One without a context, and one that leads out of it, are refused."""
    fault = refusal({"image": "app", **spec})
    assert fault.code is ErrorCode.INVALID
    assert words in fault.message


def test_a_dockerfile_without_its_context() -> None:
    """What copies from the context is refused where there is none, with its line, and taken with one."""
    text = "FROM scratch\nCOPY app /\n"
    fault = refusal({"image": "app", "dockerfile": text})
    assert fault.code is ErrorCode.INVALID
    assert "Dockerfile line 2: COPY: 'app'" in fault.message
    assert (
        parse({"image": "app"}, Upload({"context": DIGEST, "dockerfile": text}, (DIGEST,))).spec["dockerfile"] == text
    )


def test_uploaded_context_is_referenced() -> None:
    """An upload brings the context, its Dockerfile, and the blob that the job needs."""
    accepted = parse({"image": "app"}, UPLOAD)
    assert accepted.blobs == (DIGEST,)
    assert accepted.spec["context"] == DIGEST
    assert accepted.spec["dockerfile"] == "FROM scratch\n"


def test_secrets_are_parted_from_the_spec() -> None:
    """Password and URL go to the secrets; the stored URL has neither user nor query nor fragment."""
    url = "https://me:pass@files.example:8443/ctx.tar?token=t0ken#frag"
    accepted = parse({"image": "app", "tar_url": url, "username": "me", "password": "s3cret"})
    assert accepted.spec["tar_url"] == "https://files.example:8443/ctx.tar"
    assert {name: secret.reveal() for name, secret in accepted.secrets.items()} == {
        "password": "s3cret",
        "tar_url": url,
    }
    for secret in ("s3cret", "t0ken", "pass@"):
        assert secret not in str(accepted)
    credentials = build_spec(accepted).credentials(accepted.secrets)
    assert credentials is not None
    assert (credentials.username, credentials.password.reveal()) == ("me", "s3cret")


def test_url_without_scheme_means_http() -> None:
    """The scheme may be left out, also before a port."""
    assert parse({"image": "app", "tar_url": "localhost:8000/x.tar"}).spec["tar_url"] == "http://localhost:8000/x.tar"


@pytest.mark.parametrize(
    "spec",
    [{}, {"dockerfile": "FROM scratch", "tar_url": "http://a/b"}, {"context": DIGEST}],
    ids=["none", "two", "the caller's own digest"],
)
def test_exactly_one_source(spec: dict[str, Any]) -> None:
    """No source, two sources, or a digest of the caller's own choice are refused."""
    assert refusal({"image": "app", **spec}).code is ErrorCode.INVALID
    if spec:
        assert refusal({"image": "app", **spec}, UPLOAD).code is ErrorCode.INVALID


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": None}, ["image"]),
        ({"image": 7}, ["image"]),
        ({"image": "App"}, ["'App'", "lower case"]),
        ({"image": f"app@{DIGEST}"}, ["digest"]),
        ({"image": "app:bad tag"}, ["bad tag"]),
        ({"tags": ["bad tag"]}, ["bad tag"]),
        ({"tags": "latest"}, ["tags"]),
        ({"tags": [str(n) for n in range(21)]}, ["tags", "20"]),
        ({"colour": "red"}, ["colour"]),
        ({"nocache": "yes"}, ["nocache"]),
        ({"pull": "sometimes"}, ["pull"]),
        ({"platform": "linux amd64"}, ["platform", "linux amd64"]),
        ({"platform": "a/b/c/d"}, ["platform"]),
        ({"platform": "x" * 200}, ["platform"]),
        ({"username": "me"}, ["username", "password"]),
        ({"password": "x"}, ["username", "password"]),
        ({"username": "x" * (VALUE_MAX_CHARS + 1), "password": "x"}, ["username", "4096"]),
        ({"target": "x" * (VALUE_MAX_CHARS + 1)}, ["target", "4096"]),
        ({"build_args": {"A": 1}}, ["build_args"]),
        ({"build_args": {"": "x"}}, ["build_args"]),
        ({"build_args": {"A": "x" * VALUE_MAX_CHARS}}, ["build_args", "4096"]),
        ({"build_args": {str(n): "" for n in range(101)}}, ["build_args", "100"]),
        ({"labels": {str(n): "" for n in range(101)}}, ["labels", "100"]),
        ({"dockerfile": ["FROM scratch"]}, ["dockerfile"]),
        ({"dockerfile": "RUN x"}, ["line 1"]),
        ({"target": "absent"}, ["absent"]),
    ],
    ids=[
        "no-image", "image-number", "image-case", "image-digest", "image-tag", "tag", "tags-text", "tags-count",
        "unknown-field", "nocache", "pull", "platform", "platform-parts", "platform-length", "username-alone",
        "password-alone", "username-length", "target-length", "build-arg-number", "build-arg-nameless",
        "build-arg-length", "build-args-count", "labels-count", "dockerfile-list", "dockerfile-syntax", "target-absent",
    ],
)  # fmt: skip
def test_refusals_name_field_and_reason(changes: dict[str, Any], words: list[str]) -> None:
    """Everything that cannot be built is refused when it is submitted, in words about the field."""
    fault = refusal({**MINIMAL, **changes})
    assert fault.code is ErrorCode.INVALID
    for word in words:
        assert word in fault.message
    assert len(fault.message) < 1000


@pytest.mark.parametrize(
    "url",
    [
        "ftp://files.example/x",
        "file:///etc/passwd",
        "http://",
        "http://[::1/x",
        "http://a:99999/x",
        "://x",
        "x" * 10_000,
    ],
)
def test_urls_that_cannot_be_fetched(url: str) -> None:
    """What is no URL of a web server is refused before it is queued."""
    assert refusal({"image": "app", "tar_url": url}).code is ErrorCode.INVALID


@pytest.mark.parametrize("source", [{"dockerfile": "FROM scratch"}, {"tar_url": "http://files.example/x.tar"}])
def test_args_that_steer_the_builder_are_policy(source: dict[str, str]) -> None:
    """BUILDKIT_* arguments are refused when they are submitted, also when the Dockerfile is not known yet."""
    fault = refusal({"image": "app", "build_args": {"BUILDKIT_SYNTAX": "evil"}, **source})
    assert fault.code is ErrorCode.POLICY
    assert "BUILDKIT_SYNTAX" in fault.message


@pytest.mark.parametrize("image", ["imagejobd/0190", "docker.io/imagejobd/x:1", "127.0.0.1:1/imagejobd/x:1"])
def test_reserved_images_are_policy(image: str) -> None:
    """Nobody pushes under the names that hold other tenants' results and bases in the engine."""
    fault = refusal({**MINIMAL, "image": image})
    assert fault.code is ErrorCode.POLICY
    assert image.removeprefix("docker.io/") in fault.message


@pytest.mark.parametrize("image", ["registry.example/imagejobd/x", "imagejobd-like/x", "imagejobd"])
def test_names_that_only_look_reserved(image: str) -> None:
    """Only the service's own names in the engine are refused."""
    assert parse({**MINIMAL, "image": image}).spec["image"] == image


def test_reserved_labels_are_policy() -> None:
    """Labels are copied onto containers: those of the service are not for users."""
    fault = refusal({**MINIMAL, "labels": {"imagejobd.job": "x"}})
    assert fault.code is ErrorCode.POLICY
    assert "imagejobd.job" in fault.message


def test_frontend_of_an_upload_is_policy() -> None:
    """An uploaded Dockerfile passes the same rules as one in the request."""
    upload = Upload(fields={"context": DIGEST, "dockerfile": "# syntax=evil/frontend\nFROM scratch\n"}, blobs=(DIGEST,))
    assert refusal({"image": "app"}, upload).code is ErrorCode.POLICY


def test_dockerfile_is_bounded() -> None:
    """A Dockerfile over a mebibyte is too large."""
    fault = refusal({"image": "app", "dockerfile": "FROM scratch\n" + "#" * DOCKERFILE_MAX_BYTES})
    assert fault.code is ErrorCode.TOO_LARGE
