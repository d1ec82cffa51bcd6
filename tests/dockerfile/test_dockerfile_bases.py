"""Promises of the search for base images: what a build pulls, for which platform, and nothing else."""

import time
from contextlib import suppress

import pytest

from imagejobd.dockerfile import Base, Bases, Plan, automatic_args, parse
from imagejobd.dockerfile.stages import stages
from imagejobd.model.errors import ErrorCode, Permanent

AUTOMATIC = automatic_args("linux/arm/v7", "linux/amd64")


def images(text: str, *, target: str = "", is_classic: bool = False, **build_args: str) -> tuple[Base, ...]:
    dockerfile = parse(text)
    bases = Bases(dockerfile, build_args, AUTOMATIC, is_classic=is_classic)
    return Plan(dockerfile, bases, target=target).images()


def every(text: str) -> tuple[Base, ...]:
    bases = Bases(parse(text), {}, AUTOMATIC)
    return bases.of(range(len(bases.stages)))


def names(text: str, *, target: str = "", is_classic: bool = False, **build_args: str) -> list[str]:
    return [str(base.reference) for base in images(text, target=target, is_classic=is_classic, **build_args)]


def refusal(text: str, *, target: str = "", **build_args: str) -> str:
    with pytest.raises(Permanent) as caught:
        names(text, target=target, **build_args)
    assert caught.value.code == ErrorCode.INVALID
    return caught.value.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FROM busybox", ["busybox:latest"]),
        ("FROM scratch", []),
        ("FROM a AS one\nFROM ONE\nRUN x", ["a:latest"]),
        ("FROM a AS one\nFROM b\nCOPY --from=one x y", ["a:latest", "b:latest"]),
        ("FROM a\nFROM b\nCOPY --from=0 x y", ["a:latest", "b:latest"]),
        ("FROM a\nCOPY --from=c:1 x y\nCOPY --from=c:1 x y\nCOPY --from=scratch x y", ["a:latest", "c:1"]),
        ("FROM a\nRUN --mount=type=bind,from=m,target=/m x", ["a:latest", "m:latest"]),
        ('FROM a\nRUN --mount="type=bind,From=m" x', ["a:latest", "m:latest"]),
        ("FROM a\nRUN --mount=type=cache,target=/c --mount=type=tmpfs,target=/t x", ["a:latest"]),
        ("FROM a AS a\nRUN x", ["a:latest"]),
        ("FROM a AS b\nONBUILD COPY --from=t x y", ["a:latest"]),
        ("FROM a AS b\nFROM t AS t\nONBUILD COPY --from=t x y\nFROM b", ["a:latest"]),
        ("FROM t AS t\nFROM a AS b\nONBUILD COPY --from=t x y\nFROM b", ["t:latest", "a:latest"]),
        ("FROM a\nCOPY --from=later x y\nFROM b AS later", ["b:latest"]),
        ("FROM a\nRUN <<EOF\nFROM evil\nCOPY --from=evil x y\nEOF", ["a:latest"]),
        ("FROM a\n# FROM b\nRUN echo \\\nFROM c", ["a:latest"]),
    ],
)
def test_bases_are_what_the_engine_would_pull(text, expected):
    """FROM, COPY --from and RUN --mount name images unless they name stages or scratch."""
    assert names(text) == expected


CHAIN = "FROM a AS one\nFROM b AS two\nCOPY --from=one x y\nFROM c AS three\nFROM d AS four\nCOPY --from=two x y\n"


@pytest.mark.parametrize(
    ("target", "expected"),
    [("", "abd"), ("four", "abd"), ("Two", "ab"), ("three", "c"), ("one", "a")],
)
def test_only_stages_that_the_target_needs_are_pulled(target, expected):
    """BuildKit skips stages that nothing leads to; so do we."""
    assert names(CHAIN, target=target) == [f"{name}:latest" for name in expected]


def test_the_classic_builder_runs_every_stage_up_to_the_target():
    """It skips none, and takes the name of a stage that comes later for an image."""
    assert names(CHAIN, target="three", is_classic=True) == ["a:latest", "b:latest", "c:latest"]
    ahead = "FROM a\nCOPY --from=later x y\nFROM b AS later"
    assert names(ahead, is_classic=True) == ["a:latest", "later:latest", "b:latest"]


def test_every_stage_can_be_asked_for():
    """All images of all stages, whatever a target needs, with the instruction that names each; FROM goes first."""
    found = every("FROM a AS x\nCOPY --from=b c d\nFROM b\nRUN --mount=from=e,target=/e f")
    assert [(str(base.reference), base.line, base.instruction) for base in found] == [
        ("a:latest", 1, "FROM"),
        ("b:latest", 3, "FROM"),
        ("e:latest", 4, "RUN"),
    ]


def test_an_unknown_target_is_refused_with_the_stages_there_are():
    """The message lists the names that would do."""
    assert "'five' is not a stage of the Dockerfile; its stages: one, two, three, four" in refusal(CHAIN, target="five")


@pytest.mark.parametrize(
    ("text", "build_args", "expected"),
    [
        ("ARG V=1\nFROM a:$V", {}, "a:1"),
        ("ARG V=1\nFROM a:${V}", {"V": "2"}, "a:2"),
        ("ARG V\nFROM a:${V:-3}", {}, "a:3"),
        ("ARG V\nFROM a:${V:-3}", {"V": ""}, "a:3"),
        ("FROM a:${V:-3}", {"V": "undeclared"}, "a:3"),
        ("ARG V=1\nFROM a${V:+:$V}", {}, "a:1"),
        ("ARG V=\nFROM a${V:+:$V}", {}, "a:latest"),
        ("ARG R=r.example/x\nARG I=$R/app TAG='v-1'\nFROM $I:${TAG#v-}", {}, "r.example/x/app:1"),
        ("ARG V=1.2.3\nFROM a:${V%.*}", {}, "a:1.2"),
        ("ARG V=1.2.3\nFROM a:${V%%.*}", {}, "a:1"),
        ("ARG V=1.2.3\nFROM a:${V##*.}", {}, "a:3"),
        ("ARG V=1.2.3\nFROM a:${V//./-}", {}, "a:1-2-3"),
        ("ARG V=1.2.3\nFROM a:${V/.*/-x}", {}, "a:1-x"),
        ('FROM "a:1"', {}, "a:1"),
        ("FROM a-$TARGETARCH$TARGETVARIANT-$BUILDOS", {}, "a-armv7-linux:latest"),
        ("ARG TARGETARCH\nFROM a-$TARGETARCH", {}, "a-arm:latest"),
        ("FROM a-$TARGETARCH", {"TARGETARCH": "x"}, "a-x:latest"),
        ("FROM x AS y\nARG V=9\nFROM a:${V:-1}", {}, "a:1"),
        ("# escape=`\nARG V=1\nFROM a:`1$V", {}, "a:11"),
    ],
)
def test_variables_in_from(text, build_args, expected):
    """FROM is expanded by the ARGs before the first FROM, by build args for those, and by the automatic ones."""
    assert names(text, **build_args)[-1] == expected


def test_platforms_of_bases():
    """FROM's own platform goes with its base; the same image for two platforms counts twice."""
    text = "FROM --platform=$BUILDPLATFORM a AS x\nFROM a\nCOPY --from=x b c\nCOPY --from=d e f"
    found = images(text)
    assert [(str(base.reference), base.platform, base.line) for base in found] == [
        ("a:latest", "linux/amd64", 1),
        ("a:latest", None, 2),
        ("d:latest", None, 4),
    ]


def test_stages_know_their_bases():
    """A stage keeps name, line and the earlier stage it begins from."""
    (x, y, last), _ = stages(parse("FROM a AS x\nFROM b AS Y\nFROM y AS last\nRUN y"), {}, {})
    assert [(stage.name, stage.line, stage.base) for stage in (x, y, last)] == [
        ("x", 1, None),
        ("y", 2, None),
        ("last", 3, y.index),
    ]
    assert [one.name for one in last.instructions] == ["RUN"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("FROM $X", "line 1: FROM $X is empty after expansion"),
        ("FROM a:${X", "line 1: FROM a:${X"),
        ("FROM a:${X:?no-tag}", "no-tag"),
        ("FROM A/b", "lower case"),
        ("FROM a b", "line 1: FROM: it takes an image"),
        ("FROM a\u3000AS\u3000b", "line 1: FROM: image name"),
        ("FROM a AS 1x", "FROM: stage name '1x' must begin with a letter"),
        ("FROM a\nCOPY --from=$X b c", "line 2: COPY: from=$X: variables are not expanded here"),
        ("FROM a\nRUN --mount=from=${X} b", "variables are not expanded here"),
        ("FROM a\nCOPY --from=B@d c d", "line 2: COPY: image name"),
        ("FROM a\nCOPY --from=0 c d", "line 2: COPY: --from=0: there is no stage of that number before"),
        ("FROM a\nCOPY --from=99999999999999999999 c d", "no stage of that number"),
        # Python reads no number of more than 4300 digits.
        (f"FROM a AS b\nONBUILD COPY --from={'9' * 5000} c d\nFROM b", "no stage of that number"),
        ("FROM a\nFROM b\nRUN --mount=from=0,target=/x c", "line 3: RUN: from=0: a mount takes the name"),
        ('FROM a\nRUN --mount=a,\\"b b', "--mount"),
        ("ARG =x\nFROM a", "line 1: ARG: it needs a name"),
        ("ARG A=" + "x" * 5000 + "\nFROM a", "4096 characters"),
        ("FROM --platform=" + "x" * 200 + " a", "is not a platform"),
        ("ARG P='a b'\nFROM --platform=$P a", "line 2: FROM: 'a b' is not a platform"),
        ("FROM a AS x\nFROM b AS X", "line 2: FROM: the stage name 'x' is taken by an earlier stage"),
        ("FROM a AS b\nONBUILD COPY --from=t x y\nFROM b", "line 2: COPY: from=t: the trigger acts in this file"),
        ("FROM a\n" * 257, "more than 256 stages"),
        ("ARG " + " ".join(f"a{n}=1" for n in range(300)) + "\nFROM a", "more than 256 ARGs"),
        ("ARG a\n" * 300 + "FROM a", "line 257: ARG: there are more than 256 ARGs"),
        ("ARG V=1\nFROM a${V#" + "x" * 65 + "}", "line 2: FROM a${V#xxx"),
        ("ARG V=" + "x" * 600 + "\nFROM a${V%x}", "patterns go to 64 characters, on values up to 512"),
        ("FROM a${V%\\q}", "is not an escape that a pattern knows"),
        ("ARG V=" + "x" * 3000 + "\nFROM a${U:+$V$V}", "4096 characters"),
        ("FROM a\n" + ("RUN " + "--mount=from=x{},target=/x " * 60 + "y\n") * 200, "more than 10000 from="),
        ("FROM " + "${A:-" * 40, "nested"),
    ],
)
def test_faults_name_the_line(text, reason):
    """What has no base to pull is refused with the reason."""
    pieces = text.split("{}")
    assert reason in refusal("".join(f"{piece}{number}" for number, piece in enumerate(pieces[:-1])) + pieces[-1])


def test_args_that_double_each_other_are_bounded():
    """A billion laughs in ARGs ends at the bound on one word."""
    text = "ARG A=xxxxxxxxxx\n" + "ARG A=$A$A\n" * 60 + "FROM $A"
    assert "4096 characters" in refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "ARG V=" + "a" * 500 + "\n" + "FROM a:${V##" + "*a" * 30 + "b}\n" * 1,
        "ARG V=" + "a" * 500 + "\n" + "FROM a:${V//" + "a*" * 30 + "b/c}\n",
        "FROM a AS s\n" + "ONBUILD COPY --from=x a b\n" * 4000 + "FROM s AS s\n" * 250,
        "FROM a\n" + "".join(f"COPY --from=x{n} a b\n" for n in range(4900)),
        "FROM a AS s\n" + "ONBUILD RUN x\n" * 4700 + "".join(f"FROM s AS t{n}\n" for n in range(250)),
        "FROM a AS s\n"
        + "".join(f"ONBUILD COPY --from=x{n} a b\n" for n in range(4700))
        + "".join(f"FROM s AS t{n}\n" for n in range(250)),
        "ARG x=" + "a" * 512 + "\n" + ("ARG y=" + ("${u:+${x//" + "?" * 63 + "b/}}") * 50 + "\n") * 200 + "FROM a",
        "ARG x=" + "a" * 512 + "\n" + ("ARG y=" + "${u:+${x##*b*c}}" * 240 + "\n") * 200 + "FROM a",
        "ARG x=1\n" + ("ARG y=" + "${u:+${x//b/}}" * 280 + "\n") * 200 + "FROM a",
        "ARG x=" + "a" * 4000 + "\n" + ("ARG y=${u:+" + "${x:+" * 28 + "$x" * 1800 + "}" * 29 + "\n") * 200 + "FROM a",
    ],
)
def test_hostile_graphs_and_patterns_are_quick(text):
    """Neither patterns, by stars or by number, nor thousands of references take more than a moment."""
    started = time.process_time()
    with suppress(Permanent):
        names(text, is_classic=True)
    assert time.process_time() - started < 10


def test_triggers_count_in_every_stage_that_gets_them():
    """Sixty sources of one stage are ten thousand and more of the hundred and eighty that begin from it."""
    sources = "".join(f"FROM a AS x{number}\n" for number in range(60))
    triggers = "".join(f"ONBUILD COPY --from=x{number} b c\n" for number in range(60))
    stages = "".join(f"FROM s AS t{number}\n" for number in range(180))
    with pytest.raises(Permanent, match="line 288: FROM: its stage and those before it have more than 10000 from="):
        every(f"{sources}FROM a AS s\n{triggers}{stages}")


def test_the_steps_of_all_expansions_are_bounded():
    """However little each takes, together they may take no more than is said."""
    text = "ARG x=" + "a" * 512 + "\n" + ("ARG y=" + "${u:+${x//?b/}}" * 100 + "\n") * 3 + "FROM a"
    assert "line 3: ARG" in refusal(text)
    assert "take more than 200000 steps to expand" in refusal(text)
    ordinary = "ARG x=registry.example/team/app-1.2.3\n" + "ARG y=${x##*/}-${x//./-}\n" * 200 + "FROM ${y}"
    assert names(ordinary) == ["app-1.2.3-registry-example/team/app-1-2-3:latest"]
