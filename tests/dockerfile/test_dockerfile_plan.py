"""Promises of what is printed for the engine: literal, one form for all, on the lines it had, or refused."""

import pytest

from imagejobd.dockerfile.policy import Policy, PolicySettings
from imagejobd.model.errors import ErrorCode, Permanent

NAMES = "imagejobd/job:base-{}"


def printed(text: str, *, target: str = "", platform: str = "", policy: Policy | None = None, **build_args: str) -> str:
    plan = (policy or Policy()).plan(text, build_args=build_args, target=target, platform=platform)
    return plan.printed({base.key: NAMES.format(number) for number, base in enumerate(plan.images())})


def lines(text: str, **more: str) -> list[str]:
    return printed(text, **more).rstrip("\n").split("\n")


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("FROM busybox", "FROM imagejobd/job:base-0"),
        ("from BUSYBOX:${V:-1}".replace("BUSYBOX", "busybox") + " as Build", "FROM imagejobd/job:base-0 AS build"),
        ("FROM REGISTRY-1.docker.io/library/busybox", "FROM imagejobd/job:base-0"),
        ("FROM --platform=linux/x86_64 a", "FROM --platform=linux/amd64 imagejobd/job:base-0"),
        ("FROM --platform=linux/arm64/v8 a", "FROM --platform=linux/arm64 imagejobd/job:base-0"),
        ("FROM --platform=arm a", "FROM --platform=linux/arm/v7 imagejobd/job:base-0"),
        ("FROM --platform=$BUILDPLATFORM a", "FROM --platform=linux/amd64 imagejobd/job:base-0"),
        ("FROM scratch", "FROM scratch"),
    ],
)
def test_from_is_literal(text: str, sent: str):
    """Neither ARG nor alias nor spelling is left in it."""
    assert lines(text)[-1] == sent


@pytest.mark.parametrize(
    ("instruction", "sent"),
    [
        ("COPY --from=0 a b", "COPY --from=one a b"),
        ("COPY --from=1 a b", "COPY --from=1 a b"),
        ("copy --from=ONE a b", "COPY --from=one a b"),
        ("COPY --from=nginx:1 --link a b", "COPY --from=imagejobd/job:base-2 --link a b"),
        ("COPY --from=scratch a b", "COPY --from=scratch a b"),
        ('RUN --mount="From=One",target=/x y', "RUN --mount=target=/x,from=one y"),
        ("RUN --mount=from=c,type=bind,from=one,target=/x y", "RUN --mount=type=bind,target=/x,from=one y"),
        ("RUN --mount='type=bind,target=/a b' y", 'RUN --mount="type=bind,target=/a b" y'),
        ("RUN --network=none -- --x", "RUN --network=none -- --x"),
        ('CMD [ "a" , "b\\u00e9" ]', 'CMD ["a", "b\u00e9"]'),
        ("HEALTHCHECK --retries=3 cmd ['a']", "HEALTHCHECK --retries=3 cmd ['a']"),
        ('HEALTHCHECK cmd ["a"]', 'HEALTHCHECK CMD ["a"]'),
        ("onbuild run x", "ONBUILD RUN x"),
        ("ONBUILD COPY --from=other a b", "ONBUILD COPY --from=other a b"),
        ("RUN a \\\n  # why\n\n  b", "RUN a   b"),
        ('ENV a=b c="d e"', 'ENV a=b c="d e"'),
    ],
)
def test_every_instruction_has_one_form(instruction: str, sent: str):
    """Stages and images by literal names, flags and mounts in one spelling, one line, the rest as it was written."""
    assert lines(f"FROM a AS one\nFROM b\nFROM one\n{instruction}\nCOPY --from=1 x y")[3] == sent


@pytest.mark.parametrize("gap", ["", " ", "\t ", "   "])
def test_heredocs_are_written_as_one_word(gap: str):
    """`<< EOF` is a heredoc to newer engines only; to all it is as it is sent."""
    sent = lines(f"FROM a\nRUN cat <<{gap}'EOF' > /x\nFROM evil\nEOF\nUSER b")
    assert sent[1:] == ["RUN cat <<'EOF' > /x", "FROM evil", "EOF", "USER b"]


def test_what_looks_like_a_heredoc_in_quotes_stays_as_it_is():
    """Only the space behind the true one is left out, be the quoted text the same."""
    assert lines("FROM a\nRUN echo '<< A' << A\nx\nA")[1:] == ["RUN echo '<< A' <<A", "x", "A"]


def test_what_follows_a_heredoc_inside_a_heredoc_stays_text():
    """The second one's beginning, in the first one's body, puts no reader out of step."""
    text = "FROM a\nCOPY << ONE /x\nRUN <<'TWO'\nONE\nRUN true\nTWO\n"
    with pytest.raises(Permanent, match="line 6: unknown instruction 'TWO'"):
        printed(text)


def test_each_instruction_keeps_its_line():
    """What the engine says of a line is true of the user's own file."""
    text = "# syntax=docker/dockerfile:1\n# a\n\nFROM a\n\nRUN x \\\n y\n# b\nUSER c\n"
    assert lines(text) == ["", "", "", "FROM imagejobd/job:base-0", "", "RUN x  y", "", "", "USER c"]


def test_stages_that_are_not_needed_only_keep_their_place():
    """Their images are never named, and the numbers of the others stay."""
    sent = lines("FROM a\nRUN x\nFROM b AS two\nFROM c\nCOPY --from=1 x y")
    assert sent == [
        "FROM scratch",
        "",
        "FROM imagejobd/job:base-0 AS two",
        "FROM imagejobd/job:base-1",
        "COPY --from=two x y",
    ]


@pytest.mark.parametrize(
    ("head", "sent"),
    [
        ("# escape=`\n# check=error=true\n", ["# escape=`", "# check=error=true"]),
        ("# syntax=docker/dockerfile:1.7\n# check=skip=all\n", ["# check=skip=all", ""]),
        ("#check = skip=A,B;error=true\n", ["# check=skip=A,B;error=true"]),
        ("# check=skip=\u00e9\n", [""]),
        ("# other=1\n", [""]),
    ],
)
def test_directives_are_written_by_the_daemon(head: str, sent: list[str]):
    """`escape` and `check` go on working, nothing stands before them, and no frontend is ever fetched."""
    assert lines(f"{head}FROM a")[: len(sent)] == sent


def test_a_platform_that_is_written_out_is_no_remark():
    """BuildKit would warn of it, and with `error=true` fail the build, though the user wrote a variable."""
    start = "FROM --platform=$BUILDPLATFORM a"
    assert lines(f"# check=error=true\n{start}")[0] == "# check=skip=FromPlatformFlagConstDisallowed;error=true"
    assert lines(f"# check=skip=X\n{start}")[0] == "# check=skip=X,FromPlatformFlagConstDisallowed"
    assert lines(f"# check=skip=all\n{start}")[0] == "# check=skip=all"


def test_a_frontend_that_the_operator_allows_reads_the_text():
    """It is named in the one form, with its own tag."""
    policy = Policy(PolicySettings(frontends=("docker.io/docker/dockerfile:*-labs",)))
    sent = printed("# syntax=docker/dockerfile:1-labs\nFROM a", policy=policy)
    assert sent.startswith("# syntax=docker/dockerfile:1-labs\nFROM ")


def test_long_lines_are_continued():
    """A line that was continued is longer in one piece than engines take; its pieces come back as one."""
    text = "FROM a\nRUN " + "".join(f"echo {'x' * 900} # {number} \\\n" for number in range(200)) + " true\nUSER b"
    sent = lines(text)
    assert max(len(line.encode()) for line in sent) < 65534
    assert sent[200 + 2] == "USER b"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("FROM a\nCMD x \\\\\\ ".replace("\\\\\\ ", "\\ \\"), 2),
        ("# escape=`\nFROM a\nRUN --mount=type=bind,target=C:\\x y", 3),
        ('FROM a\nRUN <<E.F-"x"\nE\n', 2),
        ("FROM a\nRUN << <<E x\nE\n", 2),
        ("FROM a\nCOPY << -E /x\nE\n", 2),
    ],
)
def test_what_has_no_common_form_is_refused(text: str, line: int):
    """By line, before anything is built."""
    with pytest.raises(Permanent, match=f"line {line}") as caught:
        printed(text)
    assert caught.value.code == ErrorCode.INVALID


@pytest.mark.parametrize(
    ("text", "build_args"),
    [
        ("ARG Z=a\nFROM ${Z/*/evil}", {}),
        ("ARG Z=a\nFROM ${Z//a/\\$0evil}", {}),
        ("ARG Z\nFROM ${Z/a*b/evil}", {"Z": "a\nb"}),
        ("ARG Z\nFROM ${Z#a?}", {"Z": "a\nb"}),
    ],
)
def test_expansions_that_engines_read_in_ways_of_their_own_are_refused(text: str, build_args: dict[str, str]):
    """Empty matches, `$` in a replacement, line breaks: the base could be another one than `docker build` takes."""
    with pytest.raises(Permanent) as caught:
        printed(text, **build_args)
    assert caught.value.code == ErrorCode.INVALID


@pytest.mark.parametrize(
    ("platform", "image"),
    [("", "good-amd64"), ("linux/amd64/v1", "good-amd64"), ("linux/x86_64", "good-amd64"), ("arm64", "good-arm64")],
)
def test_automatic_args_are_those_of_the_engine(platform: str, image: str):
    """Whatever the spelling of the platform; `TARGETSTAGE` is one of them, whatever the engine's age."""
    text = "ARG A=${TARGETSTAGE:+good}\nFROM ${A:-evil}-${TARGETARCH}${TARGETVARIANT}"
    assert [str(base.reference) for base in Policy().plan(text, platform=platform).images()] == [f"{image}:latest"]
