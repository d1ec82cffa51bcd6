"""Promises of the policy to hostile authors: each known way round it ends at the rule that it was meant to pass.

Those that need a tar, such as a Dockerfile that is a link or comes twice, end earlier, where contexts are taken in.
"""

import pytest

from imagejobd.dockerfile.policy import Policy, PolicySettings
from imagejobd.model.errors import ErrorCode, Permanent

STRICT = Policy(
    PolicySettings(
        instructions=("FROM", "ARG", "RUN", "COPY", "ADD", "ONBUILD", "HEALTHCHECK"),
        images=("r.example/*",),
        flags=("*", "!RUN --security=*", "!RUN --network=host", "!COPY --chown=root*"),
        mounts=("cache", "bind"),
        add_urls=("https://r.example/*",),
        build_args=("V*",),
    )
)
FINE = "FROM r.example/a AS a\n"


def refusal(text: str, **build_args: str) -> tuple[ErrorCode, str]:
    with pytest.raises(Permanent) as caught:
        STRICT.plan(text, build_args=build_args)
    return caught.value.code, caught.value.message


def test_the_rest_of_each_attempt_is_fine():
    """Without the trick, the Dockerfiles below pass."""
    STRICT.plan(f"{FINE}ARG V\nRUN --mount=type=cache,target=/c x\nCOPY --from=a b c\nADD https://r.example/x /x\n")


FRONTENDS = [
    ("# syntax=evil", 1),
    ("#syntax=evil", 1),
    ("#  syntax  =  evil", 1),
    ("#\tSYNTAX\t=evil\r", 1),
    ("# Syntax=docker.io/docker/dockerfile:1-labs", 1),
    ("# syntax=docker/dockerfile:2", 1),
    ("# syntax=docker/dockerfile:1.7@sha256:" + "0" * 64, 1),
    ("# syntax=docker/dockerfile-upstream:1", 1),
    ("# syntax=docker.io/library/docker/dockerfile:1", 1),
    ("// syntax=docker/dockerfile:1-labs", 1),
    ("# syntax=docker/dockerfile:1 --opt", 1),
    ("# syntax=evil --opt", 1),
    ("  # syntax=evil", 1),
    ("\v\f# syntax=evil", 1),
    ("\xa0# syntax=evil", 1),
    ("#\xa0syntax=evil", 1),
    ("// syntax=evil", 1),
    ("//syntax = evil", 1),
    ("\ufeff# syntax=evil", 1),
    ("\ufeff\ufeff# syntax=evil", 1),
    ("\ufeff// syntax=evil", 1),
    ("#!/usr/bin/env docker\n# syntax=evil", 2),
    ("\ufeff#!x\n// syntax=evil", 2),
    ("# escape=`\n# syntax=evil", 2),
    ("# check=skip=all\n# escape=`\n# Syntax=evil", 3),
    ("# unknown=1\n# syntax=evil", 2),
    ("// a=1\n# syntax=evil", 2),
    ('{"syntax": "evil"}', 1),
    ('\n\t{"SYNTAX": "evil"}', 1),
    ('\ufeff{"syntax": "evil"}', 1),
    ('#!/x\n{"syntax": "evil"}', 2),
]


@pytest.mark.parametrize(("head", "line"), FRONTENDS)
def test_no_form_of_a_frontend_swap_passes(head, line):
    """Hash, slashes, JSON, any case and spacing, behind a byte order mark, a shebang or other directives."""
    code, message = refusal(f"{head}\n{FINE}")
    assert code == ErrorCode.POLICY
    assert message.startswith(f"Dockerfile line {line}: ")
    assert "[rule frontend]" in message


@pytest.mark.parametrize(
    "text",
    [
        f"{FINE}# syntax=x",
        f"# a comment\n# syntax=x\n{FINE}",
        f"\n# syntax=x\n{FINE}",
        f"# escape=`\n{FINE}",
        f"# syntax\n{FINE}",
        f"# syntaxes=x\n{FINE}",
        f"{FINE}RUN echo '{{'",
    ],
)
def test_comments_that_no_engine_obeys_are_left(text):
    """Further down, or without a value, it is a comment."""
    STRICT.plan(text)


@pytest.mark.parametrize("name", ["BUILDKIT_SYNTAX", "BUILDKIT_INLINE_CACHE", "BUILDKIT_CACHE_MOUNT_NS", "OTHER"])
def test_no_build_arg_steers_the_builder(name):
    """The frontend can be named by a build arg too."""
    code, message = refusal(FINE, **{name: "evil"})
    assert (code, "[rule build-arg]" in message) == (ErrorCode.POLICY, True)


@pytest.mark.parametrize(
    ("text", "rule", "line"),
    [
        # Images: by ARG, by build arg, in stages that nothing needs, and by everything that can name one.
        ("FROM evil", "image", 1),
        ("FROM r.example.evil/x", "image", 1),
        ("FROM R.EXAMPLE:80/x", "image", 1),
        ("FROM docker.io/r.example/x", "image", 1),
        ("ARG I=evil\nFROM $I", "image", 2),
        ("ARG V=r.example\nFROM ${V:+evil}/x", "image", 2),
        ("ARG V=r.example\nFROM ${V#r.example}evil/x", "image", 2),
        ("ARG V=r.example/\nARG V=\nFROM ${V}x", "image", 3),
        ("FROM r.\\\nevil/x", "image", 1),
        ("# escape=`\nFROM r.`\nevil/x", "image", 2),
        ('FROM "evil"', "image", 1),
        ("from evil as a", "image", 1),
        (f"FROM evil AS unused\n{FINE}", "image", 1),
        (f"{FINE}COPY --from=evil b c", "image", 2),
        (f"{FINE}COPY --from='evil' b c", "image", 2),
        (f"{FINE}COPY --fr\\\nom=evil b c", "image", 2),
        (f"{FINE}COPY --f\\rom=evil b c", "image", 2),
        (f"{FINE}copy --link --from=evil b c", "image", 2),
        (f"{FINE}RUN --mount=from=evil,target=/x y", "image", 2),
        (f"{FINE}RUN --mount=target=/x,FROM=evil y", "image", 2),
        (f"{FINE}RUN --mount=from=a,from=evil,target=/x y", "image", 2),
        (f"{FINE}RUN '--mount=\"from=evil\",target=/x' y", None, 2),
        (f"{FINE}RUN --mount='\"from=evil\",target=/x' y", "image", 2),
        (f"{FINE}ONBUILD COPY --from=evil b c\nFROM r.example/b\nCOPY --from=evil b c", "image", 4),
        # Instructions: by case, split over lines, behind ONBUILD, behind what only looks like a heredoc.
        (f"{FINE}USER root", "instruction", 2),
        (f"{FINE}uSeR root", "instruction", 2),
        (f"{FINE}US\\\nER root", "instruction", 2),
        (f"{FINE}US\\\n# comment\n\nER root", "instruction", 2),
        (f"{FINE}U\\  \t\nSER\\\n root", "instruction", 2),
        (f"# escape=`\n{FINE}US`\nER root", "instruction", 3),
        (f"{FINE}\tUSER\troot", "instruction", 2),
        (f"{FINE}\xa0USER root", "instruction", 2),
        (f"{FINE}\u3000USER\vroot", "instruction", 2),
        (f"{FINE}USER\rroot", "instruction", 2),
        (f"{FINE}ONBUILD USER root", "instruction", 2),
        (f"{FINE}onbuild\tuser root", "instruction", 2),
        (f"{FINE}ONBUILD \\\n USER root", "instruction", 2),
        (f"{FINE}RUN <<EOF\nx\nEOF\nUSER root", "instruction", 5),
        (f"{FINE}RUN <<-EOF\nx\n\tEOF\nUSER root", "instruction", 5),
        (f"{FINE}RUN <<EOF\nx\nEOF\r\nUSER root", "instruction", 5),
        (f"{FINE}RUN cat<<EOF\nUSER root", "instruction", 3),
        (f"{FINE}RUN cat <<<EOF\nUSER root", "instruction", 3),
        (f"{FINE}RUN echo '<<EOF'\nUSER root", "instruction", 3),
        (f"{FINE}RUN echo \\<<EOF\nUSER root", "instruction", 3),
        (f'{FINE}RUN ["<<EOF"]\nUSER root', "instruction", 3),
        (f"{FINE}HEALTHCHECK CMD <<EOF\nUSER root", "instruction", 3),
        (f"{FINE}# x \\\nUSER root", "instruction", 3),
        (f"{FINE}RUN x\\\\\nUSER root", "instruction", 3),
        (f"# escape=`\n{FINE}RUN dir C:\\\nUSER root", "instruction", 4),
        (f"\n# escape=`\n{FINE}RUN x`\nUSER root", "instruction", 5),
        # Flags and mounts: by quotes, escapes, variables, other spellings.
        (f"{FINE}RUN --network=host x", "flag", 2),
        (f"{FINE}RUN --network='host' x", "flag", 2),
        (f"{FINE}RUN --net\\work=ho\\st x", "flag", 2),
        (f'{FINE}RUN "--network=host" x', None, 2),
        (f"{FINE}RUN --network=default\t--security=insecure x", "flag", 2),
        (f"{FINE}RUN \\\n  --security=insecure x", "flag", 2),
        (f"{FINE}ONBUILD RUN --security=insecure x", "flag", 2),
        (f"{FINE}COPY --chown=$V a b", "flag", 2),
        (f"{FINE}COPY --chown=r\\\\oot a b", "flag", 2),
        (f"{FINE}COPY --chown=\\'root\\' a b", "flag", 2),
        (f"{FINE}RUN --mount=type=secret,id=x y", "mount", 2),
        (f"{FINE}RUN --mount=TYPE=SECRET,id=x y", "mount", 2),
        (f"{FINE}RUN --mount=type=bind,type=ssh y", "mount", 2),
        (f'{FINE}RUN --mount=type=s"ecre"t y', "mount", 2),
        (f"{FINE}RUN --mount=type=tmpfs,target=/t y", "mount", 2),
        (f"{FINE}ONBUILD RUN --mount=type=ssh y", "mount", 2),
        # URLs of ADD.
        (f"{FINE}ADD http://r.example/x /x", "add-url", 2),
        (f"{FINE}ADD x HTTPS://evil/x /x", "add-url", 2),
        (f"{FINE}ADD https://r.example.evil/x /x", "add-url", 2),
        (f"{FINE}ADD https:\\\n//evil/x /x", "add-url", 2),
        (f'{FINE}ADD ["\\u0068ttps://evil/x", "/x"]', "add-url", 2),
        (f"{FINE}ARG U=https://evil/x\nADD $U /x", "add-url", 3),
        (f"{FINE}ADD git@evil:x/y /x", "add-url", 2),
        (f"{FINE}ONBUILD ADD https://evil/x /x", "add-url", 2),
    ],
)
def test_no_trick_hides_what_is_forbidden(text, rule, line):
    """What the engine would obey is seen, and refused by its rule; None is for what no engine takes for a flag."""
    if rule is None:
        STRICT.plan(text)
        return
    code, message = refusal(text)
    assert code == ErrorCode.POLICY
    assert message.startswith(f"Dockerfile line {line}: ")
    assert f"[rule {rule}]" in message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"{FINE}ONBUILD ONBUILD RUN x", 2),
        (f"{FINE}ONBUILD FROM evil", 2),
        (f"{FINE}ONBUILD --x USER root", 2),
        (f"{FINE}RUN <<EOF\nUSER root", 2),
        (f"{FINE}RUN <<EOF\nUSER root\n EOF", 2),
        (f'{FINE}RUN echo "<<EOF"\nEOF', 3),
        (f'{FINE}RUN ["x"] <<EOF\nRUN x\nEOF', 2),
        (f'{FINE}ADD ["https://evil/x", "/x"] x', 2),
        (f"{FINE}RUN ${{A:-x <<EOF }}\nRUN x\nEOF", 2),
        (f"{FINE}RUN x\0\nUSER root", 2),
        (f"{FINE}RUN <<\ufeffE\nE\nUSER root\nRUN <<F\n\ufeffE\nF", 2),
        ("ARG V=\ufeff\nFROM ${V:+r.example/}evil", 1),
        (f'{FINE}ADD ["\\ufeffhttps://evil/x", "/x"]', 2),
        (f"{FINE}ADD \ufeffhttps://evil/x /x", 2),
        (f"{FINE}U\u017fER root", 2),
        (f"{FINE}U\u200bSER root", 2),
        (f"{FINE}USER\xa0root", 2),
        (f"{FINE}USER\u2028root", 2),
        (f"{FINE}\x1cUSER root", 2),
        (f"{FINE}R\\\\\nUN x", 2),
        (f"{FINE}COPY --FROM=evil b c", 2),
        (f"{FINE}COPY --from=$V b c", 2),
        (f"{FINE}COPY --from=a --from=evil b c", 2),
        (f"{FINE}COPY --link\xa0--from=evil b c", 2),
        (f"{FINE}RUN --network=HOST x", 2),
        (f"{FINE}RUN --network=$V x", 2),
        (f"{FINE}RUN --device=x y", 2),
        (f"{FINE}RUN --mount=type=$V,id=x y", 2),
        (f"{FINE}RUN --mount=type=\\'secret\\' y", 2),
        (f"{FINE}RUN --mount=\xa0type=secret y", 2),
        ("# check=skip=all\n# escape=`\nFROM r.example/a\nRUN x`\nUSER root", 2),
        ("#\xa0escape=`\nFROM r.example/a", 1),
        ("# escape=`\n#ESCAPE=\\\nFROM r.example/a", 2),
        ("USER root\nFROM r.example/a", 1),
        ("FROM r.example/a AS scratch/x", 1),
        (f"{FINE}RUN " + "x" * 70_000, 2),
    ],
)
def test_what_engines_read_differently_is_not_read_at_all(text, line):
    """Nested triggers, broken heredocs, odd spaces and characters: a fault of syntax with its line."""
    code, message = refusal(text)
    assert code == ErrorCode.INVALID
    assert message.startswith(f"Dockerfile line {line}: ")
    assert message.endswith("[rule syntax]")


HEREDOCS = [
    ("RUN <<EOF\nUSER root\nADD https://evil/x /x\n# syntax=evil\nEOF\n", "RUN"),
    ("COPY <<A <<B /x\nUSER x\nA\nFROM y\nB\n", "COPY"),
    ("RUN <<CMD\nCOPY --from=evil a b\nCMD\n", "RUN"),
    ("RUN <<EOF\nCOPY --from=evil a b\nRUN true \\\nEOF\n", "RUN"),
    ("RUN x \\\n  3<<-'A.B'\nUSER x\n\tA.B\n", "RUN"),
    ("ADD <<A /x\nUSER x\nA\n", "ADD"),
    ("ONBUILD RUN <<A\nUSER x\nA\n", "ONBUILD"),
]


@pytest.mark.parametrize(("text", "instruction"), HEREDOCS)
def test_a_heredoc_is_text_only_to_an_engine_that_knows_it(text, instruction):
    """Its body is no instruction, whatever it looks like; an engine that would take it for some is not sent it."""
    STRICT.plan(FINE + text)
    for policy in (STRICT, Policy()):
        with pytest.raises(Permanent) as caught:
            policy.plan(FINE + text, knows_heredocs=False)
        assert caught.value.code == ErrorCode.POLICY
        expected = (
            f"{instruction}: heredocs (<<EOF) need Docker Engine 23 or newer with BuildKit; the engine here would"
        )
        assert caught.value.message == f"Dockerfile line 2: {expected} read their lines as instructions [rule heredoc]"


@pytest.mark.parametrize(
    "text",
    [
        'RUN ["<<EOF"]',
        "RUN echo '<<EOF'",
        "RUN cat <<<EOF",
        "RUN <<''",
        "RUN echo $((1<<2))",
        "HEALTHCHECK CMD <<EOF",
    ],
)
def test_what_only_looks_like_a_heredoc_needs_no_newer_engine(text):
    """To every engine these are one line."""
    STRICT.plan(FINE + text, knows_heredocs=False)
