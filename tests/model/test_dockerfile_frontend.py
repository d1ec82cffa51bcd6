"""Promises of the frontend check: no form of a frontend swap passes, and no ordinary comment is taken for one."""

import pytest

from imagejobd.model.dockerfile import check_build_args, check_frontend, check_mounts, parse
from imagejobd.model.errors import ErrorCode, Permanent


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("# syntax=docker/dockerfile:1\nFROM a", 1),
        ("#syntax = x\nFROM a", 1),
        ("#\t SYNTAX\t=x\r\nFROM a", 1),
        ("\ufeff# syntax=x\nFROM a", 1),
        ("# escape=`\n# syntax=x\nFROM a", 2),
        ("# check=skip=all\n# escape=`\n# Syntax=x\nFROM a", 3),
        ("# unknown=1\n# syntax=x\nFROM a", 2),
        ("//syntax=x\nFROM a", 1),
        ("// syntax = x\nFROM a", 1),
        ("#!/usr/bin/env docker\n# syntax=x\nFROM a", 2),
        ("\ufeff#!/usr/bin/env docker\n//syntax=x\nFROM a", 2),
        ('{"syntax": "x"}', 1),
        ('\n {"SYNTAX": "x"}', 1),
        ('#!/x\n{"syntax": "x"}', 2),
        ("  # syntax=x\nFROM a", 1),
    ],
)
def test_every_form_of_a_swap_is_refused(text, line):
    """Hash, slashes, JSON, any case and spacing, behind a byte order mark, a shebang or other directives."""
    with pytest.raises(Permanent) as caught:
        check_frontend(text)
    assert caught.value.code == ErrorCode.POLICY
    assert caught.value.message.startswith(f"Dockerfile line {line}: ")


@pytest.mark.parametrize(
    "text",
    [
        "FROM a\n# syntax=x",
        "# a comment\n# syntax=x\nFROM a",
        "\n# syntax=x\nFROM a",
        "# escape=`\nFROM a",
        "# syntax\nFROM a",
        "# syntaxes=x\nFROM a",
        "FROM a\nRUN echo '{'",
        "",
    ],
)
def test_comments_that_no_engine_obeys_are_left(text):
    """Further down, or without a value, it is a comment."""
    check_frontend(text)


def test_build_args_that_steer_the_builder_are_refused():
    """BUILDKIT_SYNTAX and its like are refused by name; others pass."""
    check_build_args(["VERSION", "buildkit", "MY_BUILDKIT_SYNTAX"])
    with pytest.raises(Permanent, match="BUILDKIT_SYNTAX") as caught:
        check_build_args(["VERSION", "BUILDKIT_SYNTAX"])
    assert caught.value.code == ErrorCode.POLICY


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("FROM a\nRUN --mount=type=secret,id=x cat /run/secrets/x", 2),
        ("FROM a\nRUN echo\nRUN --mount=type=ssh git clone x", 3),
        ("FROM a\nONBUILD RUN --mount=type=secret,id=x true", 2),
        ("FROM a\nRUN --mount=type=cache,target=/c --mount=id=k,type=ssh true", 2),
    ],
)
def test_mounts_that_need_a_session_are_refused(text, line):
    """Secret and ssh mounts are refused with their line, instead of failing in the engine with words about sessions."""
    with pytest.raises(Permanent, match="build session") as caught:
        check_mounts(parse(text))
    assert caught.value.code == ErrorCode.POLICY
    assert caught.value.message.startswith(f"Dockerfile line {line}: ")


def test_other_mounts_pass():
    """Cache, bind and tmpfs mounts are the build's own affair."""
    check_mounts(parse("FROM a\nRUN --mount=type=cache,target=/c --mount=target=/b --mount=type=tmpfs,target=/t true"))
