"""`.dockerignore` says the same here as to docker's client."""

import pytest

from imagejobd.archive.ignore import PATTERNS_MAX, IgnoreFile
from imagejobd.model.errors import ErrorCode, Permanent

# One pattern, a path, and whether the pattern excludes it: with what moby's own tests of its matcher promise.
ONE_PATTERN = [
    ("**", "file", True),
    ("**/", "file", True),
    ("**", "dir/file", True),
    ("**/**", "dir/file", True),
    ("dir/**", "dir/file", True),
    ("dir/**", "dir/dir2/file", True),
    ("**/dir", "dir", True),
    ("**/dir", "dir/file", True),
    ("**/dir2/*", "dir/dir2/file", True),
    ("**/dir2/**", "dir/dir2/dir3/file", True),
    ("**file", "file", True),
    ("**file", "dir/dir/file", True),
    ("**/file", "dir/file", True),
    ("**/file*txt", "dir/dir/file.txt", True),
    ("**/**/*.txt", "dir/dir/file.txt", True),
    ("**/**/*.txt2", "dir/dir/file.txt", False),
    ("**/*.txt", "file.txt", True),
    ("a**/*.txt", "a/dir/dir/file.txt", True),
    ("a/*.txt", "a/dir/file.txt", False),
    ("a/*.txt", "a/file.txt", True),
    ("a/*.txt**", "a/file.txt", True),
    ("a[b-d]e", "ae", False),
    ("a[b-d]e", "ace", True),
    ("a[^b-d]e", "aze", True),
    ("a[!b]e", "a!e", True),
    (".*", ".foo", True),
    (".*", "foo", False),
    ("abc.def", "abcZdef", False),
    ("abc?def", "abcZdef", True),
    ("**/foo/bar", "foo/bar", True),
    ("**/foo/bar", "dir/dir2/foo/bar", True),
    ("abc/**", "abc", False),
    ("abc/**", "abc/def/ghi", True),
    ("**/.foo", "bar.foo", False),
    ("a(b)c/def", "a(b)c/xyz", False),
    ("a.|)$(}+{bc", "a.|)$(}+{bc", True),
    ("dist/*.whl", "dist/proxy.py-2.4.0rc3.dev36+g08acad9-py3-none-any.whl", True),
    ("a\\\\", "a\\", True),
    ("a\\*b", "a*b", True),
    ("a\\*b", "axb", False),
    ("*c", "abc", True),
    ("a*", "ab/c", True),
    ("a*/b", "a/c/b", False),
    ("a*b?c*x", "abxbbxdbxebxczzx", True),
    ("a*b?c*x", "abxbbxdbxebxczzy", False),
    ("a?b", "a☺b", True),
    ("a???b", "a☺b", False),
    ("[a-ζ]*", "α", True),
    ("*[a-ζ]", "A", False),
    ("[\\]a]", "]", True),
    ("[x\\-]", "-", True),
    ("[x\\-]", "z", False),
    # What comes into the regular expression as it is, because only RE2 knows it.
    ("x[[:digit:]]", "x7", True),
    ("x\\d", "x7", True),
    ("a^b*", "a^bc", False),
    ("a^b", "a^b", True),
    # Bytes that are not UTF-8.
    ("caf?", b"caf\xe9", True),
    ("caf??", b"caf\xe9", False),
    (b"caf\xe9", b"caf\xe9", True),
]


@pytest.mark.parametrize(("pattern", "path", "is_excluded"), ONE_PATTERN)
def test_one_pattern(pattern: str | bytes, path: str | bytes, is_excluded: bool) -> None:
    """Wildcards stay within a name, `**` does not, and what is in an excluded directory is excluded."""
    assert IgnoreFile(_bytes(pattern)).excludes(_bytes(path)) is is_excluded


@pytest.mark.parametrize(
    ("lines", "excluded", "included"),
    [
        ("docs\n!docs/README.md", ["docs", "docs/a"], ["docs/README.md"]),
        ("docs/\n!docs/README.md", ["docs/a"], ["docs/README.md"]),
        ("!README.md\n*.md", ["README.md"], []),
        ("*.md\n!README.md", ["a.md"], ["README.md"]),
        ("**\n!a/b", ["a", "c/d"], ["a/b", "a/b/c"]),
        ("**\n!a/b\na/b/c", ["a/b/c"], ["a/b", "a/b/d"]),
        ("*\n!**/keep", ["a", "a/b"], ["keep", "a/keep", "a/b/keep"]),
        # The third pattern could not have changed the verdict on `a`, so that it says nothing about what is in it.
        ("*\n!a/b\na", ["a", "a/c"], ["a/b"]),
        # The exception names the directory, which is not what was excluded.
        ("a/b\n!a", ["a/b", "a/b/c"], ["a"]),
        ("a/b\n!a/**", [], ["a", "a/b", "a/b/c"]),
    ],
)
def test_the_last_pattern_decides(lines: str, excluded: list[str], included: list[str]) -> None:
    """Later patterns undo earlier ones, as far as docker lets them."""
    ignore = IgnoreFile(lines.encode())
    assert [path for path in excluded + included if ignore.excludes(path.encode())] == excluded


@pytest.mark.parametrize(
    ("content", "excluded", "included"),
    [
        (b"\xef\xbb\xbfa\n", ["a"], []),
        (b"b\n\xef\xbb\xbfa\n", ["b"], ["a"]),
        (b"a\r\nb\r\n", ["a", "b"], []),
        (b"  a\t \n", ["a"], []),
        (b"# a\n", [], ["a", "# a"]),
        (b" # a\n", ["# a"], ["a"]),
        (b"\\# a\n", ["# a"], []),
        (b"/a/b/\n", ["a/b"], ["a"]),
        (b"//a\n", ["a"], []),
        (b"./a/../b//c/.\n", ["b/c"], ["a", "b"]),
        (b"../a\n", [], ["a"]),
        (b"/\n.\n\n", [], ["a"]),
        (b"*\n! /a\n", ["b"], ["a"]),
        (b"*\n!\xc2\xa0a\n", ["b"], ["a"]),
        # Each of the two stages trims and cleans: the first takes the slash away, the second then sees the rest.
        (b"*\n/!a\n", ["b"], ["a"]),
        (b"/ a\n", ["a"], [" a"]),
        (b"a\x1c\n", ["a\x1c"], ["a"]),
    ],
)
def test_lines(content: bytes, excluded: list[str], included: list[str]) -> None:
    """Marks of encoding and line ends, spaces, comments, slashes and dots are read as docker reads them."""
    ignore = IgnoreFile(content)
    assert [path for path in excluded + included if ignore.excludes(path.encode())] == excluded


@pytest.mark.parametrize(
    ("content", "line"),
    [(b"a\n!\n", 2), (b"!/", 1), (b"\n\n! \n", 3)]
    + [
        (pattern, 1)
        for pattern in (
            b"[",
            b"a[",
            b"[^",
            b"[^bc",
            b"[]a]",
            b"[-]",
            b"[x-]",
            b"[-x]",
            b"[a-b-c]",
            b"\\",
            b"[z-a]",
            b"\\q",
        )
    ]
    + [(b"[\xe9]", 1)],
)
def test_malformed_patterns(content: bytes, line: int) -> None:
    """A pattern that docker refuses is refused, and its line is named."""
    with pytest.raises(Permanent, match=rf"^x\.dockerignore, line {line}: ") as error:
        IgnoreFile(content, "x.dockerignore")
    assert error.value.code is ErrorCode.INVALID


@pytest.mark.parametrize("content", [b"a\n" * (PATTERNS_MAX + 1), b"a" * 65536, b"#" * (2 << 20)])
def test_bounds(content: bytes) -> None:
    """A file of more than anyone writes is refused."""
    with pytest.raises(Permanent, match="the limit is") as error:
        IgnoreFile(content)
    assert error.value.code is ErrorCode.TOO_LARGE


@pytest.mark.parametrize(
    ("lines", "directory", "is_pruned"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a\n!a/b", "a", False),
        ("a\n!a/b/*", "a", False),
        ("a\n!b", "a", True),
        ("*\n!ab/c", "a", True),
        ("*\n!ab/c", "ab", False),
        ("a\n!a/b", "a/c", True),
        ("a\n!**/b", "a", False),
    ],
)
def test_pruned_directories(lines: str, directory: str, is_pruned: bool) -> None:
    """A directory need not be walked when no exception can bring back anything in it."""
    assert IgnoreFile(lines.encode()).prunes(directory.encode()) is is_pruned


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()
