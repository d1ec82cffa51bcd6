"""Promises of the policy: each rule forbids what its list says, names it, and leaves the rest alone."""

from typing import Any

import pytest

from imagejobd.dockerfile import Base
from imagejobd.dockerfile.policy import VIOLATIONS_MAX, Policy, PolicySettings
from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.model.reference import ImageReference

DIGEST = "sha256:" + "a" * 64


def policy(**settings: Any) -> Policy:
    return Policy(PolicySettings(**settings))


def refusal(text: str, *, build_args: dict[str, str] | None = None, target: str = "", **settings: Any) -> str:
    with pytest.raises(Permanent) as caught:
        policy(**settings).plan(text, build_args=build_args, target=target)
    assert caught.value.code == ErrorCode.POLICY
    return caught.value.message


def allowed(text: str, *, target: str = "", **settings: Any) -> bool:
    """Whether `text` passes; what does not is refused as a matter of policy."""
    try:
        policy(**settings).plan(text, target=target)
    except Permanent as fault:
        if fault.code != ErrorCode.POLICY:
            raise
        return False
    return True


def test_the_default_lets_ordinary_dockerfiles_pass():
    """What people build every day needs no configuration, and the bases come back."""
    text = (
        "ARG V=12\nFROM debian:$V AS build\nADD https://example.org/x /x\n"
        "RUN --mount=type=cache,target=/c --network=none x\n"
        "ONBUILD RUN y\nFROM scratch\nCOPY --from=build --chown=$U --link /x /x\nHEALTHCHECK --interval=5s CMD z\n"
    )
    assert [str(base.reference) for base in policy().plan(text).images()] == ["debian:12"]


@pytest.mark.parametrize(
    ("settings", "instruction", "expected"),
    [
        ({"instructions": ["FROM", "CMD"]}, "run x", "RUN: is not allowed [rule instruction]"),
        ({"instructions": ["*", "!ADD"]}, "ADD a b", "ADD: is not allowed [rule instruction]"),
        ({"instructions": ["*", "!ADD"]}, "ONBUILD ADD a b", "ONBUILD ADD: is not allowed [rule instruction]"),
        ({"instructions": ["*", "!ONBUILD"]}, "ONBUILD RUN x", "ONBUILD: is not allowed [rule instruction]"),
        ({}, "RUN --network=host x", "RUN: --network=host is not allowed [rule flag]"),
        ({}, "RUN --security=insecure x", "RUN: --security=insecure is not allowed [rule flag]"),
        ({}, "ONBUILD RUN --network=host x", "ONBUILD RUN: --network=host is not allowed [rule flag]"),
        ({"flags": ["*", "!COPY --link"]}, "COPY --link a b", "COPY: --link is not allowed [rule flag]"),
        ({"flags": ["*", "!COPY --link=true"]}, "COPY --link a b", "COPY: --link is not allowed [rule flag]"),
        ({"flags": ["RUN --mount"]}, "COPY --link a b", "COPY: --link is not allowed [rule flag]"),
        (
            {"flags": ["*", "!* --chown=root*"]},
            "COPY --chown=root a b",
            "COPY: --chown=root is not allowed [rule flag]",
        ),
        (
            {"flags": ["*", "!* --chown=root*"]},
            "COPY --chown=$U a b",
            "COPY: --chown=$U is not allowed, for what a variable or quote in it may become is not known [rule flag]",
        ),
        (
            {"mounts": ["bind"]},
            "RUN --mount=type=CACHE,target=/c x",
            "RUN: --mount=type=cache is not allowed [rule mount]",
        ),
        ({"mounts": ["*", "!bind"]}, "RUN --mount=target=/c x", "RUN: --mount=type=bind is not allowed [rule mount]"),
        ({}, "RUN --mount=type=secret,id=x y", "RUN: --mount=type=secret needs a build session"),
        ({}, "RUN --mount=type=tmpfs,target=/t --mount=id=k,type=ssh y", "RUN: --mount=type=ssh needs a build session"),
        ({}, "ONBUILD RUN --mount=type=Secret,id=x y", "ONBUILD RUN: --mount=type=secret needs a build session"),
        ({"add_urls": []}, "ADD https://e.org/x /y", "ADD: source 'https://e.org/x' is not allowed [rule add-url]"),
        (
            {"add_urls": []},
            "ONBUILD ADD http://e/x /y",
            "ONBUILD ADD: source 'http://e/x' is not allowed [rule add-url]",
        ),
        ({"add_urls": []}, 'ADD ["a", "http://e/x", "/y"]', "ADD: source 'http://e/x' is not allowed [rule add-url]"),
        (
            {"add_urls": ["https://e.org/*"]},
            "ADD $URL /y",
            "ADD: source '$URL' could become a URL that is not allowed; begin what is in the context with ./",
        ),
        (
            {"images": ["docker.io/library/a:*"]},
            "COPY --from=b c d",
            "COPY: image docker.io/library/b:latest is not allowed",
        ),
        (
            {"images": ["docker.io/library/a:*"]},
            "RUN --mount=target=/b,from=b c",
            "RUN: image docker.io/library/b:latest is not allowed [rule image]",
        ),
        ({}, "COPY --from=imagejobd/x:1 a b", "COPY: base image imagejobd/x:1: names like this are reserved"),
    ],
)
def test_each_rule_names_what_it_forbids(settings, instruction, expected):
    """A violation comes with the line, the instruction, what was written, and the rule's id."""
    message = refusal(f"FROM a\n{instruction}", **settings)
    assert message.startswith(f"Dockerfile line 2: {expected}")
    assert "[rule " in message


@pytest.mark.parametrize(
    ("settings", "instruction"),
    [
        ({"instructions": ["F*", "RUN"]}, "RUN ADD a b"),
        ({"instructions": ["*", "!RUN", "R?N"]}, "RUN x"),
        ({"flags": []}, "RUN x"),
        ({"flags": ["COPY --*"]}, "COPY --chown=$U --from=a b c"),
        ({"flags": ["*", "!RUN --mount=*"]}, "COPY --chown=$U b c"),
        ({"mounts": ["cache", "tmpfs"]}, "RUN --mount=type=cache,target=$T x"),
        ({"add_urls": []}, "ADD ./a-$V /b"),
        ({"add_urls": []}, "ADD src/a-${V} b /c"),
        ({"add_urls": []}, "ADD a https://dest/"),
        ({"add_urls": []}, "COPY https://e/x /y"),
        ({"add_urls": []}, "RUN curl https://e/x"),
        ({"add_urls": []}, "ADD ./x.git /y"),
        ({"add_urls": ["https://e.org/*"]}, "ADD https://e.org/a-$V.tgz /b"),
        ({"add_urls": ["*", "!http://*"]}, "ADD https://e.org/a-$V.tgz /b"),
        ({"images": ["docker.io/library/?:latest"]}, "FROM b AS c\nCOPY --from=0 x y"),
        ({"images": ["docker.io/library/a:latest"]}, "COPY --from=scratch x y"),
    ],
)
def test_rules_leave_alone_what_is_allowed(settings, instruction):
    """The last glob that matches decides; what a rule is not about is none of its business."""
    assert allowed(f"FROM a\n{instruction}", **settings)


@pytest.mark.parametrize(
    "source",
    [
        "https://e.org/x",
        "HTTPS://e.org/x",
        "http:/e.org/x",
        "ftp://e/x",
        "git://e/x",
        "ssh://git@e/x",
        "git@e.org:x/y.git",
        "user@e.org:x",
        "github.com/x/y",
        "GitHub.com/x/y#main",
        "www.github.com/x/y",
        "e.org/x.git",
        "e.org/x.git#main:sub",
        'ht"tps://e.org/x"',
        "'https://e.org/x'",
        "ht\\tps://e.org/x",
        "$S://e.org/x",
        "${S:-https}://e.org/x",
        "${S:+./}https://e.org/x",
        '"$S"',
        "http$S",
        "\\$S",
    ],
)
def test_every_form_of_a_remote_source_is_judged(source):
    """Any scheme, git's short forms, and whatever variables, quotes or escapes could turn into one."""
    assert "[rule add-url]" in refusal(f"FROM a\nADD {source} /x", add_urls=["https://elsewhere.org/*"])
    assert allowed(f"FROM a\nADD {source} /x")


def test_a_backtick_is_an_escape_where_the_file_says_so():
    """With `# escape=` a backtick hides no URL."""
    text = "# escape=`\nFROM a\nADD ht`tps://e.org/x /y"
    assert "source 'ht`tps://e.org/x' is not allowed" in refusal(text, add_urls=[])


def test_triggers_are_judged_as_the_engine_will_read_them():
    """An ONBUILD of a stage is read anew with the default escape, so a backslash hides no URL there."""
    text = "# escape=`\nFROM a AS x\nONBUILD ADD ht\\tps://e.org/x /y\nFROM x"
    assert "is not allowed [rule add-url]" in refusal(text, add_urls=[])


def test_what_is_too_long_to_expand_could_be_anything():
    """A word beyond our bounds is no way round the list."""
    assert "could become a URL" in refusal(
        "FROM a\nADD 'https://e.org/" + "x" * 5000 + "' /y", add_urls=["https://f/*"]
    )


def test_images_are_judged_after_expansion_in_every_stage():
    """Stages that the target does not need count too; names are whole, with the Hub's own spelled out."""
    only = ["docker.io/library/debian:*", "registry.example:5000/team/*"]
    good = "ARG I=registry.example:5000/team\nFROM debian:12 AS x\nFROM $I/app\nCOPY --from=x a b\nFROM scratch"
    assert allowed(good, images=only)
    text = "FROM debian:12 AS x\nFROM evil/debian:12\nFROM x AS last"
    expected = "Dockerfile line 2: FROM: image docker.io/evil/debian:12 is not allowed [rule image]"
    assert refusal(text, target="last", images=only) == expected
    by_arg = refusal("ARG I=debian\nFROM $I", build_args={"I": "docker.io/evil/x"}, images=only)
    assert "image docker.io/evil/x:latest is not allowed" in by_arg


def test_a_digest_decides_alone():
    """A tag beside a digest is looked at by no engine, so it opens no door."""
    tagged = f"FROM debian:12@{DIGEST}"
    assert not allowed(tagged, images=["docker.io/library/debian:*"])
    assert allowed(tagged, images=["docker.io/library/debian@*"])


def test_bases_can_have_to_name_their_digest():
    """With require_digest a tag is not enough, wherever an image is named."""
    text = f"FROM debian@{DIGEST} AS x\nCOPY --from=busybox:1 a b"
    expected = "Dockerfile line 2: COPY: image docker.io/library/busybox:1 must be pinned by its digest: image@sha256:…"
    assert refusal(text, require_digest=True) == f"{expected} [rule digest]"
    assert allowed(f"FROM debian@{DIGEST} AS x\nCOPY --from=x a b\nFROM scratch", require_digest=True)


def test_names_of_the_service_are_no_bases():
    """What other jobs built stands in the engine under reserved names, and no policy opens them."""
    for name in ("imagejobd/0198:1", "docker.io/imagejobd/x", "127.0.0.1:1/imagejobd/x:base"):
        assert "[rule reserved]" in refusal(f"FROM {name}")


def test_build_args_are_judged_by_name():
    """Those that steer the builder never pass, whatever the list says."""
    with pytest.raises(Permanent) as caught:
        policy(build_args=["V_*", "BUILDKIT_*"]).check_build_args(["V_1", "OTHER", "BUILDKIT_SYNTAX"])
    assert caught.value.code == ErrorCode.POLICY
    first, second = caught.value.message.split("; ")
    assert first == "build arg 'OTHER': is not allowed [rule build-arg]"
    assert second.startswith(
        "build arg 'BUILDKIT_SYNTAX': is not allowed: names with BUILDKIT_ in front steer the builder"
    )
    policy().check_build_args(["VERSION", "buildkit", "MY_BUILDKIT_SYNTAX"])


def test_frontends_can_be_allowed_by_image():
    """The list names images; a form that is no plain image stays forbidden, and the rest of the file is judged."""
    lists: dict[str, Any] = {"frontends": ["docker.io/docker/dockerfile:1*"]}
    assert allowed("# syntax=docker/dockerfile:1.7\nFROM a", **lists)
    assert "[rule frontend]" in refusal("# syntax=docker/dockerfile:2\nFROM a", **lists)
    assert "[rule frontend]" in refusal("# syntax=docker/dockerfile:1 x\nFROM a", **lists)
    assert "[rule frontend]" in refusal('{"syntax": "docker/dockerfile:1"}', **lists)
    assert "[rule mount]" in refusal("# syntax=docker/dockerfile:1\nFROM a\nRUN --mount=type=ssh x", **lists)


def test_all_violations_are_told_at_once():
    """One answer names each of them in order, up to a bound, in one line."""
    message = refusal("# syntax=x\nFROM a\nRUN --network=host x\nRUN --mount=type=ssh y")
    assert [part.rpartition(" [rule ")[2] for part in message.split("]; ")] == ["frontend", "flag", "mount]"]
    many = refusal("FROM a\n" + "RUN --network=host x\n" * 500)
    assert many.count("[rule flag]") == VIOLATIONS_MAX
    assert many.endswith("; and more")
    assert "\n" not in many


def test_what_cannot_be_read_is_a_fault_of_syntax():
    """Syntax errors keep their own code, with line, instruction and the rule `syntax`; forbidden things go first."""
    with pytest.raises(Permanent) as caught:
        policy().plan("FROM a\nCOPY --nope=1 a b")
    assert caught.value.code == ErrorCode.INVALID
    assert caught.value.message.startswith("Dockerfile line 2: COPY: flag --nope is not known")
    assert caught.value.message.endswith("[rule syntax]")
    with pytest.raises(Permanent, match="not valid Unicode"):
        policy().plan("FROM a\nRUN \ud800")
    assert "[rule frontend]" in refusal("# syntax=x\nNOPE")


BASE = Base(ImageReference.parse("r.example/base:1"), None, 3, "FROM")


@pytest.mark.parametrize(
    ("settings", "trigger", "expected"),
    [
        ({}, "RUN --network=host x", "RUN: --network=host is not allowed [rule flag]"),
        ({}, "run --mount=type=secret,id=x y", "RUN: --mount=type=secret needs a build session"),
        ({"instructions": ["FROM", "WORKDIR"]}, "RUN x", "RUN: is not allowed [rule instruction]"),
        ({"add_urls": []}, "ADD http://e/x /y", "ADD: source 'http://e/x' is not allowed [rule add-url]"),
        ({}, "COPY --from=r.example/x:1 a b", "COPY: from=r.example/x:1 could be any image in the engine"),
        ({}, "COPY --from=0123456789ab a b", "COPY: from=0123456789ab could be any image in the engine"),
        ({}, "COPY --from=a1b a b", "COPY: from=a1b could be any image in the engine"),
        ({}, f"COPY --from={'1' * 20} a b", f"COPY: from={'1' * 20} could be any image in the engine"),
        ({}, "COPY --from=+1 a b", "COPY: from=+1 could be any image in the engine"),
        ({}, "RUN --mount=from=a1b,target=/x y", "RUN: from=a1b could be any image in the engine"),
        ({}, "RUN --mount=from=0,target=/x y", "RUN: from=0 could be any image in the engine"),
        ({}, "FROM evil", "'FROM evil': ONBUILD: FROM is not allowed in it [rule syntax]"),
        ({}, "ONBUILD RUN x", "'ONBUILD RUN x': ONBUILD: ONBUILD is not allowed in it [rule syntax]"),
        ({}, "FOO x", "'FOO x': unknown instruction 'FOO' [rule syntax]"),
        ({}, "RUN x\nRUN y", "'RUN x\\nRUN y': a trigger is exactly one instruction [rule syntax]"),
        ({}, "", "'': a trigger is exactly one instruction [rule syntax]"),
        ({}, "COPY --from=$X a b", "'COPY --from=$X a b': COPY: from=$X: variables are not expanded here"),
    ],
)
def test_triggers_of_a_base_are_judged_alike(settings, trigger, expected):
    """What an image's ONBUILD brings into a build obeys the same rules; the message names image and trigger."""
    with pytest.raises(Permanent) as caught:
        policy(**settings).check_triggers(BASE, ["WORKDIR /", trigger])
    assert caught.value.code == ErrorCode.POLICY
    where = "ONBUILD trigger 2 of base image r.example/base:1 (Dockerfile line 3): "
    assert caught.value.message.startswith(f"{where}{expected}")


def test_triggers_that_are_allowed_pass():
    """Stages by their number and scratch are no images."""
    policy(images=["r.example/*"]).check_triggers(
        BASE, ["COPY --from=0 a b", "COPY --from=255 a b", "COPY --from=scratch a b", "RUN <<EOF\nFROM x\nEOF"]
    )


def test_triggers_of_a_base_are_bounded():
    """An image may hold any number of them, and each is read."""
    with pytest.raises(Permanent, match="have more than 65536 characters"):
        policy().check_triggers(BASE, ["RUN x"] * 20_000)


def test_quotes_in_sources_are_bounded_too():
    """What is left when the steps are used up could be anything; a policy that does not care looks at none."""
    text = "FROM a\n" + "ADD " + "'a' " * 10_000 + "/x\n"
    assert "[rule add-url]" in refusal(text, add_urls=[])
    assert allowed(text)
    with pytest.raises(Permanent, match="could become a URL"):
        policy(add_urls=[]).check_triggers(BASE, ["ADD " + "'a' " * 6_000 + "/x"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"instructions": ["RNU"]}, "policy.instructions: 'RNU' is no instruction; there are ADD, ARG"),
        ({"instructions": ["*", "!"]}, "policy.instructions: '!' names nothing"),
        ({"images": ["debian:12"]}, "policy.images: 'debian:12' has no registry host in front"),
        ({"images": ["library/debian:12"]}, "policy.images: 'library/debian:12' has no registry host in front"),
        ({"images": ["*", "!debian*"]}, "policy.images: '!debian*' has no registry host in front"),
        ({"images": ["*", "!!x"]}, "policy.images: '!!x' names nothing"),
        ({"flags": ["*", "!RUN --mont=*"]}, "policy.flags: '!RUN --mont=*' is no flag of an instruction"),
        ({"flags": ["run --mount=*"]}, "policy.flags: 'run --mount=*' is no flag"),
        ({"flags": ["--mount=*"]}, "policy.flags: '--mount=*' is no flag"),
        ({"mounts": ["caches"]}, "policy.mounts: 'caches' is no type of mount; there are bind, cache"),
        ({"frontends": ["docker/dockerfile:1"]}, "policy.frontends: 'docker/dockerfile:1' has no registry host"),
        ({"add_urls": [""]}, "policy.add_urls: '' names nothing"),
        ({"build_args": [" x"]}, "policy.build_args: ' x' has spaces around it"),
        ({"build_args": ["x" * 600]}, "policy.build_args: 'xxx"),
    ],
)
def test_lists_that_cannot_be_meant_are_refused(settings, message):
    """A glob that can match nothing is a mistake, which would forbid all or nothing; its key is named."""
    with pytest.raises(Permanent) as caught:
        policy(**settings)
    assert caught.value.code == ErrorCode.INVALID
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize(
    "settings",
    [
        {"images": ["localhost/*", "*/team/*", "r.example/x@sha256:*", "?:5000/x", "*"]},
        {"flags": ["RUN --*", "* --chown=*", "COPY --link", "!COPY --from=r.example/[x]*", "*"]},
        {"instructions": [], "images": [], "flags": [], "mounts": [], "add_urls": [], "build_args": []},
        {"mounts": ["*", "!secret"], "frontends": ["docker.io/docker/dockerfile:1"]},
    ],
)
def test_lists_that_can_be_meant_are_taken(settings):
    """Wildcards may stand anywhere, and an empty list forbids all."""
    policy(**settings)


def test_brackets_in_a_glob_are_brackets():
    """Only `*` and `?` are special."""
    assert allowed("FROM a\nCOPY --chown=[ab] x y", flags=["COPY --chown=[ab]"])
    assert not allowed("FROM a\nCOPY --chown=a x y", flags=["COPY --chown=[ab]"])
