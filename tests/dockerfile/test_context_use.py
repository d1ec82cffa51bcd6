"""What a Dockerfile without a context may not copy, told when it is submitted."""

import tracemalloc

import pytest

from imagejobd.dockerfile.policy import Policy
from imagejobd.model.errors import Permanent

POLICY = Policy()


def refusal(*lines: str, target: str = "", **build_args: str) -> str:
    """Code and words for a Dockerfile that comes alone; empty when it is accepted. With a context it always is."""
    text = "\n".join(lines)
    POLICY.check(text, build_args=build_args, target=target)
    try:
        POLICY.check(text, build_args=build_args, target=target, has_context=False)
    except Permanent as fault:
        return f"{fault.code.value}: {fault.message}"
    return ""


@pytest.mark.parametrize(
    "line",
    [
        "COPY app.py /",
        "COPY . /app",
        'COPY ["a b", "/x/"]',
        "COPY --chown=1:1 a /",
        "COPY $WHATEVER /",
        "COPY <<EOF a /x/\ntext\nEOF",
        "ADD app.tar /",
        'ADD ["./http", "/"]',
        "ADD http://h.example/x local /x/",
        "RUN --mount=type=bind,target=/src make",
        "RUN --mount=target=/src,source=sub make",
        "RUN --mount=type=cache,target=/c --mount=type=bind,source=a,target=/b make",
    ],
)
def test_what_needs_a_context(line: str) -> None:
    """Copying or mounting from a context that is not there is refused with its line and what to do instead."""
    message = refusal("FROM a", line)
    assert message.startswith("invalid: Dockerfile line 2: ")
    assert message.endswith("[rule context]")
    assert "send its folder as a tar" in message
    assert "heredoc" in message


@pytest.mark.parametrize(
    "line",
    [
        "COPY --from=busybox /bin /bin",
        "COPY <<EOF /x\nCOPY a b\nEOF",
        "COPY <<'A' <<-B /x/\na\nA\n\tb\nB",
        "ADD https://h.example/x /x",
        "ADD git@h.example:x/y.git /x",
        "ADD <<EOF /x\nx\nEOF",
        "ADD $FROM_BASE /x",
        "ADD ${FROM_BASE:-a} /x",
        "RUN --mount=type=cache,target=/c make",
        "RUN --mount=type=tmpfs,target=/c make",
        "RUN --mount=from=busybox,target=/c make",
        "ONBUILD COPY a b",
        "RUN echo COPY a b",
    ],
)
def test_what_needs_none(line: str) -> None:
    """What comes from elsewhere, or may do so, is left to the build."""
    assert refusal("FROM a", line) == ""


def test_variables() -> None:
    """A source of ADD is told by what it becomes: by a build arg, a default, an ARG before FROM, an ENV."""
    assert "line 3: ADD: '$SRC'" in refusal("FROM a", "ARG SRC=x.tar", "ADD $SRC /")
    assert refusal("FROM a", "ARG SRC=x.tar", "ADD $SRC /", SRC="https://h.example/x") == ""
    assert "line 3" in refusal("FROM a", "ARG SRC=https://h.example/x", "ADD $SRC /", SRC="x.tar")
    assert "line 4" in refusal("ARG SRC=x.tar", "FROM a", "ARG SRC", "ADD ${SRC} /")
    assert refusal("ARG SRC=x.tar", "FROM a", "ADD ${SRC} /") == ""
    assert "line 3" in refusal("FROM a", "ENV HOME_OF=/src OTHER=y", "ADD ${HOME_OF}/x /")
    assert "line 3" in refusal("FROM a", "ENV HOME_OF ./src", "ADD $HOME_OF /")
    assert refusal("FROM a", "ENV URL=https://h.example", "ADD ${URL}/x /") == ""
    assert refusal("FROM a", "ARG X=a", "ENV X=$FROM_BASE", "ADD $X /") == ""
    assert "line 4" in refusal("FROM a AS below", "ENV X=a", "FROM below", "ADD $X /")


def test_stages() -> None:
    """Only what is built counts, with the triggers of the stages that it begins from."""
    stages = ("FROM a AS unused", "COPY x /", "FROM b AS last", "RUN true")
    assert refusal(*stages) == ""
    assert "line 2" in refusal(*stages, target="unused")
    assert "line 2" in refusal(*stages, "COPY --from=unused /x /")
    assert "line 2: COPY" in refusal("FROM a AS below", "ONBUILD COPY x /", "FROM below", "RUN true")
    assert refusal("FROM a AS below", "ONBUILD COPY x /", "FROM b") == ""


def test_many_variables_and_stages() -> None:
    """A stage does not copy what it has from those below it, and words are expanded within a bound."""
    count = 100_000
    lines = [
        "FROM a AS s0",
        *(f"ENV {' '.join(f'v{n}=' for n in range(at, at + 7000))}" for at in range(0, count, 7000)),
    ]
    lines += [f"FROM s{number} AS s{number + 1}" for number in range(200)]
    lines += ["ENV X=a", *["ADD $X$Y$Z /"] * 3000, "ADD local /"]
    tracemalloc.start()
    message = refusal(*lines)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "ADD: 'local'" in message
    assert peak < 200 << 20
