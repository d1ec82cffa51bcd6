"""Promises of image references: Docker's grammar, parsed once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.reference import ImageReference, is_digest, is_tag

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "host", "path", "tag", "digest", "shown"),
    [
        ("busybox", "docker.io", "library/busybox", "latest", None, "busybox:latest"),
        ("library/busybox:1", "docker.io", "library/busybox", "1", None, "busybox:1"),
        ("team/app", "docker.io", "team/app", "latest", None, "team/app:latest"),
        ("docker.io/busybox", "docker.io", "library/busybox", "latest", None, "busybox:latest"),
        ("index.docker.io/team/app", "docker.io", "team/app", "latest", None, "team/app:latest"),
        ("localhost/app", "localhost", "app", "latest", None, "localhost/app:latest"),
        ("localhost:5000/app:v1", "localhost:5000", "app", "v1", None, "localhost:5000/app:v1"),
        ("Example.org/a/b/c", "example.org", "a/b/c", "latest", None, "example.org/a/b/c:latest"),
        ("[::1]:5000/app", "[::1]:5000", "app", "latest", None, "[::1]:5000/app:latest"),
        ("my.org/app", "my.org", "app", "latest", None, "my.org/app:latest"),
        (f"app@{DIGEST}", "docker.io", "library/app", None, DIGEST, f"app@{DIGEST}"),
        (f"r.example/app:1@{DIGEST}", "r.example", "app", "1", DIGEST, f"r.example/app:1@{DIGEST}"),
        ("a__b/c-d--e.f", "docker.io", "a__b/c-d--e.f", "latest", None, "a__b/c-d--e.f:latest"),
    ],
)
def test_references_parse_as_docker_reads_them(text, host, path, tag, digest, shown):
    """Host, repository, tag and digest come apart, and the short form is what the engine shows."""
    reference = ImageReference.parse(text)
    assert (reference.host, reference.path, reference.tag, reference.digest) == (host, path, tag, digest)
    assert str(reference) == shown
    assert ImageReference.parse(shown) == reference


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "missing"),
        ("UPPER/app", "lower case"),
        ("r.example/", "missing"),
        ("app:", "tag"),
        ("app:-x", "tag"),
        ("app:" + "x" * 129, "tag"),
        ("app@sha256:abc", "digest"),
        ("app@md5:" + "a" * 32, "digest"),
        ("-bad.example/app", "registry host"),
        ("r.example:port/app", "registry host"),
        ("a//b", "characters or separators"),
        ("a..b", "characters or separators"),
        ("a b", "characters or separators"),
        ("a\nb", "characters or separators"),
        ("f" * 64, "image id"),
        ("a" * 600, "600 characters"),
        ("r.example/" + "a" * 256, "longer than 255"),
    ],
)
def test_bad_references_are_refused_with_the_wrong_part(text, reason):
    """Each fault says which part of the name is wrong."""
    with pytest.raises(Permanent) as caught:
        ImageReference.parse(text)
    assert caught.value.code == ErrorCode.INVALID
    assert reason in caught.value.message


def test_default_tag_can_be_left_out():
    """Without a default, a bare name has neither tag nor digest."""
    assert ImageReference.parse("app", default_tag=None).tag is None


def test_with_tag_replaces_tag_and_digest():
    """`with_tag` names another tag of the same repository and checks it."""
    assert str(ImageReference.parse(f"r.example/app:1@{DIGEST}").with_tag("v2")) == "r.example/app:v2"
    with pytest.raises(Permanent):
        ImageReference.parse("app").with_tag("no tag")


def test_digests_and_tags_are_told_apart():
    """Only whole digests of known algorithms, and tags without a line break behind, count."""
    assert is_digest(DIGEST)
    assert is_digest("sha512:" + "0" * 128)
    assert not is_digest(DIGEST + "\n")
    assert not is_digest(DIGEST.upper())
    assert is_tag("v1.0_a-b")
    assert not is_tag("v1\n")
    assert not is_tag("ü")


@given(st.text(max_size=60))
def test_any_text_parses_or_is_refused(text):
    """No text breaks the parser, and what it accepts it reads back the same."""
    try:
        reference = ImageReference.parse(text)
    except Permanent:
        return
    assert ImageReference.parse(str(reference)) == reference
