"""Promises of the Dockerfile reader: the instructions that an engine sees, and no others.

The expectations were checked against BuildKit's own parser.
"""

import time
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagejobd.dockerfile import parse
from imagejobd.model.errors import ErrorCode, Permanent


def lines_of(text: str) -> list[tuple[str, int, int]]:
    return [(one.name, one.first_line, one.last_line) for one in parse(text).instructions]


def test_instructions_with_their_lines():
    """Names come in upper case, with first and last line; comments and empty lines are nothing."""
    text = '# a comment\n\nfrom busybox\n  run echo a \\\n  # in between\n\n  b\n\tCMD ["sh"]\r\n'
    assert lines_of(text) == [("FROM", 3, 3), ("RUN", 4, 7), ("CMD", 8, 8)]
    assert parse(text).instructions[1].arguments == "echo a   b"


def test_flags_are_parted_from_arguments():
    """Leading `--` words lose their quotes; a lone `--` ends them."""
    copy = parse("FROM a\nCOPY --from=b --chown='x y' --link src dst").instructions[1]
    assert copy.flags == ("--from=b", "--chown=x y", "--link")
    assert copy.arguments == "src dst"
    assert list(copy.flag_values("from")) == ["b"]
    assert parse("FROM a\nRUN -- --x").instructions[1].arguments == "--x"


def test_the_json_form_is_told_from_text():
    """An array of strings comes as values; what is no array is text."""
    _, run, add, check, text = parse(
        'FROM a\nRUN ["a", "b c"]\nADD --link ["x", "/y z"]\nHEALTHCHECK CMD ["q"]\nRUN [ -f x ]'
    ).instructions
    assert [one.values for one in (run, add, check, text)] == [("a", "b c"), ("x", "/y z"), ("q",), None]


def test_mounts_of_run_are_parsed():
    """Type, `bind` where it is left out, and origin of each mount; keys and types go in any case."""
    run = parse('FROM a\nRUN --mount=target=/x,FROM=b --mount="Type=Cache,target=/c" --mount=\'type=bind,"src=a,b"\' x')
    assert [(mount.type, mount.origin) for mount in run.instructions[1].mounts] == [
        ("bind", "b"),
        ("cache", ""),
        ("bind", ""),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("RUN <<EOF\nFROM evil\nEOF\nCMD x", [("RUN", 2, 4), ("CMD", 5, 5)]),
        ("RUN <<-EOF\n\tFROM evil\n\tEOF\nCMD x", [("RUN", 2, 4), ("CMD", 5, 5)]),
        ("RUN <<'E.F' cat <<\"B\"\nFROM x\nE.F\nFROM y\nB\nCMD x", [("RUN", 2, 6), ("CMD", 7, 7)]),
        ("RUN cat << EOF > /x\nFROM x\nEOF\nCMD x", [("RUN", 2, 4), ("CMD", 5, 5)]),
        ("RUN echo '<< A' << B\nFROM x\nB\nCMD x", [("RUN", 2, 4), ("CMD", 5, 5)]),
        ("RUN a<< b\nCMD x", [("RUN", 2, 2), ("CMD", 3, 3)]),
        ("COPY <<a 3<<b /d/\nFROM x\na\nFROM y\nb\nCMD x", [("COPY", 2, 6), ("CMD", 7, 7)]),
        ("ONBUILD RUN <<EOF\nFROM x\nEOF", [("ONBUILD", 2, 4)]),
        ('RUN ["a", "<<EOF"]\nCMD x', [("RUN", 2, 2), ("CMD", 3, 3)]),
        ('RUN echo "<<EOF"\nCMD x', [("RUN", 2, 2), ("CMD", 3, 3)]),
        ("RUN cat<<EOF\nCMD x", [("RUN", 2, 2), ("CMD", 3, 3)]),
        ("RUN cat <<<EOF\nCMD x", [("RUN", 2, 2), ("CMD", 3, 3)]),
        ("RUN echo $((1<<2))\nCMD x", [("RUN", 2, 2), ("CMD", 3, 3)]),
        ("ENV a=<<EOF\nCMD x", [("ENV", 2, 2), ("CMD", 3, 3)]),
        ("RUN echo ' <<EOF\nCMD x", [("RUN", 2, 2), ("CMD", 3, 3)]),
        ("RUN x \\\n  <<EOF\nFROM evil\nEOF", [("RUN", 2, 5)]),
    ],
)
def test_heredocs_begin_and_end_where_the_engine_sees_them(text, expected):
    """Bodies are never instructions, and what only looks like a heredoc hides none."""
    assert lines_of(f"FROM a\n{text}") == [("FROM", 1, 1), *expected]


def test_heredoc_bodies_are_kept():
    """Name and body come with the instruction; `<<-` takes the leading tabs away."""
    (heredoc,) = parse("FROM a\nRUN <<-'X'\n\tone\n\t\ttwo\n\tX\n").instructions[1].heredocs
    assert (heredoc.name, heredoc.body) == ("X", "one\ntwo\n")


def test_escape_directive_changes_the_continuation():
    """With a backtick for escape a backslash at the end of a line is text."""
    text = "# escape=` \t \nFROM a\nRUN dir C:\\\nRUN x `\n  y\n"
    assert lines_of(text) == [("FROM", 2, 2), ("RUN", 3, 3), ("RUN", 4, 5)]
    assert parse(text).escape == "`"


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffFROM a\nRUN x\\\ny",
        "# a comment\n# escape=`\nFROM a\nRUN x\\\ny",
        "\n# escape=`\nFROM a\nRUN x\\\ny",
        "#!/usr/bin/env x\n# escape=`\nFROM a\nRUN x\\\ny",
    ],
)
def test_directives_count_at_the_very_top_only(text):
    """After a comment, an empty line or a shebang, `# escape=` is a comment."""
    assert parse(text).escape == "\\"
    assert [name for name, _, _ in lines_of(text)] == ["FROM", "RUN"]


def test_a_doubled_escape_does_not_continue():
    """Two backslashes at the end of a line are one backslash, as in BuildKit."""
    assert len(lines_of("FROM a\nRUN echo \\\\\nCMD x")) == 3


def test_only_the_engines_line_ends_and_spaces_count():
    """U+2028, form feeds and file separators do not end a line, and the last is no space either."""
    assert len(lines_of("FROM a\nRUN a\u2028FROM b\x0cFROM c\x85FROM d")) == 2
    with pytest.raises(Permanent, match="unknown instruction"):
        parse("FROM a\n\x1cRUN x")


def test_onbuild_has_its_trigger():
    """The instruction inside ONBUILD is parsed too, with its flags."""
    trigger = parse("FROM a\nONBUILD copy --from=b c d").instructions[1].trigger
    assert trigger is not None
    assert (trigger.name, trigger.flags, trigger.first_line) == ("COPY", ("--from=b",), 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no instructions"),
        ("# only\n", "no instructions"),
        ("FROM a\n\nFOO bar", "Dockerfile line 3: unknown instruction 'FOO'"),
        ("FROM a\nRUN x\nEOF", "line 3: unknown instruction 'EOF'"),
        ("RUN x\nFROM a", "line 1: RUN: it comes before the first FROM"),
        ("ARG x", "line 1: ARG: it comes before the first FROM"),
        ("FROM", "line 1: FROM: it needs an argument"),
        ("FROM a\nCOPY", "line 2: COPY: it needs an argument"),
        ("FROM a\nRUN <<EOF\nx", "line 2: the heredoc <<EOF is not closed"),
        ("FROM a\nONBUILD FROM b", "line 2: ONBUILD: FROM is not allowed in it"),
        ("FROM a\n" + "ONBUILD " * 5000 + "RUN x", "line 2: ONBUILD: ONBUILD is not allowed in it"),
        ("FROM a\nONBUILD --x RUN y", "line 2: ONBUILD: flag --x is not known; its flags: none"),
        ("# check=skip=all\n# escape=`\nFROM a", "line 2: engines disagree about 'escape' behind 'check'"),
        ("FROM a\nRUN x\0y", "line 2: there is a NUL"),
        ("FROM a\nRUN " + "x" * 65531, "line 2: the line is longer than 65534 bytes"),
        ("# escape=x\nFROM a", "line 1: invalid escape character 'x'"),
        ("# escape=`\n# ESCAPE=`\nFROM a", "line 2: only one 'escape'"),
        ("# escape=   \nFROM a", "line 1: invalid escape character"),
        (
            "FROM a\nRUN <<A " + "xxxxxxxxxxxxxxxx \\\n" * 16_000 + "\nA",
            "the instructions that hold '<<' have more than 262144",
        ),
        ("# escape\xa0=`\nFROM a", "line 1: engines disagree"),
        ("#\u3000escape=`\nFROM a", "line 1: engines disagree"),
        ("# escape=`\xa0\nFROM a", "line 1: invalid escape character"),
        ("FROM a\nu\u017fer x", "line 2: unknown instruction"),
        ("FROM a\nRUN " + "--mount=target=/x " * 100 + "y", "more than 64 flags"),
        ("FROM a\n" + "RUN x\n" * 5000, "more than 5000 instructions"),
        ("FROM a\nRUN echo ${A:-x <<EOF }\nEOF", "engines disagree"),
        ('FROM a\nRUN ["x"] <<EOF\nFROM b\nEOF', "line 2: RUN: engines disagree"),
        ('FROM a\nADD ["https://x/", "/y"] z', "line 2: ADD: engines disagree about what follows a JSON array"),
        ('FROM a\nCMD ["x", 1]', "line 2: CMD: a JSON array may hold nothing but strings"),
        ("FROM a\nCMD " + "[" * 5000, "line 2: CMD: the JSON array is nested too deep"),
        ('FROM a\nCMD ["\\ud800"]', "line 2: CMD: a string of the JSON array holds NUL"),
        ("FROM a\nCMD [" + "1" * 5000 + "]", "line 2: CMD: the JSON array is nested too deep, or holds a huge number"),
        ('FROM a\nCMD ["\\ufeffx"]', "line 2: CMD: a string of the JSON array holds NUL, a byte order mark"),
        ("FROM a\nRUN x \\\n\ufeffy", "line 2: there is a byte order mark inside the text"),
        ('FROM a\nCMD ["\\u0000"]', "line 2: CMD: a string of the JSON array holds NUL"),
        ("FROM a\nSHELL sh", "line 2: SHELL: it takes the JSON form"),
        ("FROM a\nSHELL []", "line 2: SHELL: it takes the JSON form"),
        ("FROM a\nENV a", "line 2: ENV: it needs a name and a value"),
        ("FROM a\nENV \\\v", "line 2: ENV: it needs a name and a value"),
        ("FROM a\nENV a=b c", "line 2: ENV: 'c' has no '='"),
        ("FROM a\nONBUILD LABEL a", "line 2: LABEL: it needs a name and a value"),
        ("FROM a\nADD x", "line 2: ADD: it needs a source and a destination"),
        ("FROM a\nHEALTHCHECK RUN x", "line 2: HEALTHCHECK: it is NONE, or CMD and a command"),
        ("FROM a\nHEALTHCHECK NONE x", "line 2: HEALTHCHECK: it is NONE, or CMD and a command"),
        ("FROM a\nHEALTHCHECK CMD", "line 2: HEALTHCHECK: it is NONE, or CMD and a command"),
        ("FROM a\nRUN " + "${A:-" * 40 + " <<EOF", "unknown instruction"),
    ],
)
def test_faults_name_the_line(text, message):
    """What cannot be read is refused with its line and the reason."""
    if message == "unknown instruction":
        text += "\nEOF"
    with pytest.raises(Permanent) as caught:
        parse(text)
    assert caught.value.code == ErrorCode.INVALID
    assert message in caught.value.message
    assert caught.value.message.endswith(" [rule syntax]")


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        ("FROM --platfrom=x b", "FROM: flag --platfrom is not known; its flags: --platform"),
        ("RUN --device=x y", "RUN: flag --device is not known; its flags: --mount, --network, --security"),
        ("RUN --Network=none y", "RUN: flag --Network is not known"),
        ("COPY --checksum=x a b", "COPY: flag --checksum is not known"),
        ("ENV --x=y a=b", "ENV: flag --x is not known; its flags: none"),
        ("COPY --from a b", "COPY: flag --from needs a value: --from=…"),
        ("COPY --from=a --from=b c d", "COPY: flag --from is given twice"),
        ("COPY --link=maybe a b", "COPY: flag --link is true or false, not 'maybe'"),
        ("RUN --network=HOST x", "RUN: flag --network is one of default, none, host, not 'HOST'"),
        ("RUN --network=$N x", "RUN: flag --network is one of"),
        ("RUN --security=root x", "RUN: flag --security is one of sandbox, insecure, not 'root'"),
        ("COPY --from=\u00e9 a b", "COPY: flag '--from=\u00e9' has characters other than printable ASCII"),
        ("COPY --from=a\u00a0b c d", "COPY: flag '--from=a' has characters"),
        ("COPY --from='a\tb' c d", "COPY: flag \"--from='a\\tb'\" has characters"),
        ("RUN --mount=type=evil x", "RUN: --mount: type 'evil' is not one of bind, cache, secret, ssh, tmpfs"),
        ("RUN --mount=type=$T x", "RUN: --mount: type '$t' is not one of"),
        ("RUN --mount=type=sec\\'\\'ret x", "RUN: --mount: type \"sec''ret\" is not one of"),
        ("RUN --mount=nope=1 x", "RUN: --mount: key 'nope' is not known"),
        ("RUN --mount=target x", "RUN: --mount: key target needs a value"),
        ('RUN --mount=a,\\"b b', "RUN: --mount: "),
    ],
)
def test_unknown_flags_are_refused(instruction, reason):
    """A flag that no engine knows for the instruction, or in a form that engines tear apart, is no flag here."""
    with pytest.raises(Permanent) as caught:
        parse(f"FROM a\n{instruction}")
    assert caught.value.message.startswith(f"Dockerfile line 2: {reason}")


@given(st.text(alphabet=st.sampled_from("FROM a\nRUN<<EO${:-}'\"\\`#=\t\r-[]"), max_size=200))
def test_any_text_parses_or_is_refused(text):
    """No text breaks the parser, and instructions never overlap."""
    with suppress(Permanent):
        lines = lines_of("FROM a\n" + text)
        assert all(end < start for (_, _, end), (_, start, _) in pairwise(lines))


@pytest.mark.parametrize(
    "text",
    [
        "FROM a\nRUN " + "x" * (1 << 20),
        "FROM a\nRUN <<A " + "$" * (1 << 18) + "\nA",
        "FROM a\nRUN <<A " + "'" * (1 << 18) + "\nA",
        "FROM a\nRUN <<A " + "\\" * (1 << 18) + "x\nA",
        "FROM a\n" + "RUN x \\\n" * (1 << 17),
        "FROM a\nRUN --" + " --a" * (1 << 18),
        "#" * (1 << 20) + "\nFROM a",
        "# check=x" + " " * 65_000 + "x\nFROM a",
        "#" + " " * 65_000 + "x\nFROM a",
        "# check" + " " * 65_000 + "x\nFROM a",
        "#" + "x" * 65_000 + "\nFROM a",
        "FROM a\nRUN <<A " + "x\\y" * 20_000 + ("\\\n" + "x\\y" * 20_000) * 16 + "\nA",
    ],
    ids=[
        "word",
        "dollars",
        "quotes",
        "escapes",
        "continuations",
        "flags",
        "comment",
        "spaces-in-check",
        "spaces-in-comment",
        "spaces-before-equals",
        "long-name",
        "long-heredoc-line",
    ],
)
def test_a_mebibyte_of_anything_is_read_quickly(text):
    """The time to read a Dockerfile grows with its size, never with its square."""
    started = time.process_time()
    with suppress(Permanent):
        parse(text)
    assert time.process_time() - started < 10


@pytest.mark.parametrize("end", ["", "\n"])
def test_lines_are_bounded_by_number(end):
    """20,000 lines of the file are read, whatever is on them; one more is refused, naming the bound."""
    text = "FROM a\n" + "#\n" * 19_998 + "RUN x"
    assert lines_of(text + end) == [("FROM", 1, 1), ("RUN", 20_000, 20_000)]
    with pytest.raises(Permanent, match="Dockerfile line 20001: there are more than 20000 lines"):
        parse(f"#\n{text}{end}")


def test_an_ordinary_dockerfile_is_cheap():
    """500 lines take milliseconds."""
    text = "FROM a AS b\n" + 'RUN apt-get install \\\n  -y "x" <<EOF\necho hi\nEOF\nCOPY --from=b x y\n' * 100
    started = time.process_time()
    parse(text)
    assert time.process_time() - started < 2
