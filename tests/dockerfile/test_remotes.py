"""Whom ADD would have the engine ask: told where every reader of URLs reads the same, and nowhere else."""

import pytest

from imagejobd.dockerfile.parser import parse
from imagejobd.dockerfile.remotes import Remote, remotes


def found(*lines: str) -> list[tuple[str | None, bool]]:
    text = "\n".join(["FROM scratch", *lines, ""])
    return [(remote.host, remote.is_url) for remote in remotes(parse(text).instructions)]


@pytest.mark.parametrize(
    ("word", "host"),
    [
        ("http://files.example/x", "files.example"),
        ("HTTPS://Files.Example:8443/x?y#z", "Files.Example"),
        ("https://files.example", "files.example"),
        ("https://files.example?x", "files.example"),
        ("http://user:p%40ss@files.example:80/x", "files.example"),
        ("http://127.0.0.2/x", "127.0.0.2"),
        ("http://0x7f000002:80/x", "0x7f000002"),
        ("http://[::ffff:127.0.0.2]:80/x", "::ffff:127.0.0.2"),
        ("https://github.com/team/app.git#main:docs", "github.com"),
        ("git://git.example/app.git", "git.example"),
        ("ssh://git@git.example:22/app.git", "git.example"),
        ("git@git.example:team/app.git", "git.example"),
        ("git@git.example:${WHAT}", "git.example"),
        ("https://files.example/${VERSION}/x", "files.example"),
        ("https://files.example/a'b'", "files.example"),
        ("'http://files.example/x'", "files.example"),
        ("ht\\tp://files.example/x", "files.example"),
    ],
)
def test_hosts(word: str, host: str) -> None:
    """The host of a URL or git repository is told, also where what follows it varies."""
    assert (host, True) in found(f"ADD {word} /x")
    assert (host, True) in found(f"ONBUILD ADD {word} /x")
    assert (host, True) in found(f"ADD ./first {word} ./last /x/")


@pytest.mark.parametrize(
    "word",
    [
        "http://good.example\\@evil.example/x",
        "http://good.example@evil.example@third.example/x",
        "http:///x",
        "http://:80/x",
        "http://%31%32%37.0.0.2/x",
        "http://１２７.0.0.2/x",
        "http://127。0.0.2/x",
        "http://evil.example:80:81/x",
        "http://[fe80::1%25eth0]/x",
        "http://good.example\x7f.evil.example/x",
        "https:////evil.example/x",
    ],
)
def test_odd_hosts(word: str) -> None:
    """What parsers of URLs do not agree about has no host, and is a URL all the same."""
    hosts = found(f"ADD {word} /x")
    assert hosts
    assert (None, True) in hosts
    assert "good.example" not in [host for host, _ in hosts]


@pytest.mark.parametrize(
    "word",
    [
        "${URL}",
        "$URL",
        "http://$HOST/x",
        "http://files.example$REST",
        "http://files.example:${PORT}/x",
        "http://${USER}@files.example/x",
        "${SCHEME}://files.example/x",
        "ftp://files.example/x",
        "s3:/bucket/x",
        "repository.git",
        "github.com/team/app",
    ],
)
def test_what_cannot_be_told(word: str) -> None:
    """A variable that could reach into the host, and what is no URL that engines fetch, have none."""
    assert found(f"ADD {word} /x") == [(None, False)]


@pytest.mark.parametrize("line", ["ADD x /x", "ADD ./http://x /x", "ADD / $TO", "ADD ./$X /x", "COPY http://x/y /x"])
def test_files_are_no_remotes(line: str) -> None:
    """What is surely of the context, where it goes to, and COPY are nothing to ask about."""
    assert found(line) == []


def test_each_host_of_a_line_once() -> None:
    """A thousand files of one server are one question, told with its line."""
    text = "FROM scratch\n\nADD " + " ".join(f"http://files.example/{number}" for number in range(1000)) + " /x/\n"
    assert list(remotes(parse(text).instructions)) == [Remote(3, "files.example", is_url=True)]


@pytest.mark.parametrize(
    "line", ['ADD ["http://files.example/x y", "/x"]', 'ADD --chmod=644 ["http://files.example/x", "/x"]']
)
def test_json(line: str) -> None:
    """Sources in JSON are sources."""
    assert found(line) == [("files.example", True)]
