"""Promises of the index: every member in the order of a walk, each with where its bytes are."""

import io
import random
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_context import bounds_of, go_on, member, tar_of

from imagejobd.archive import ignore as ignore_file
from imagejobd.archive import index, rewrite
from imagejobd.archive.inflate import Stopped
from imagejobd.model.entry import Entry
from imagejobd.model.errors import ErrorCode, Permanent

DOCKERFILE = ("Dockerfile", b"FROM scratch\n")


def indexed(folder: Path, *entries: tuple[str, bytes] | tarfile.TarInfo) -> tuple[Path, list[Entry]]:
    """The checked tar of `entries` and a Dockerfile, and its index without the Dockerfile."""
    tar = folder / "checked.tar"
    with tar.open("wb") as file:
        rewrite(io.BytesIO(tar_of(DOCKERFILE, *entries)), file, bounds_of(), go_on)
    return tar, [entry for entry in index(tar) if entry.path != b"Dockerfile"]


def content(tar: Path, entry: Entry) -> bytes:
    return tar.read_bytes()[entry.offset : entry.offset + entry.size]


def test_order_is_that_of_a_walk(tmp_path: Path) -> None:
    """Siblings by their bytes, and what is in a directory right behind it, whatever stands in a name."""
    names = ["b", "a!", "a/z", "a/b/c", "a.txt", "a/b.txt", "ä", "Z", "a\udcff", "a/\udc80"]
    _, entries = indexed(tmp_path, *((name, b"") for name in names))
    assert [entry.path for entry in entries] == [
        b"Z",
        b"a",
        b"a/b",
        b"a/b/c",
        b"a/b.txt",
        b"a/z",
        b"a/\x80",
        b"a!",
        b"a.txt",
        b"a\xff",
        b"b",
        "ä".encode(),
    ]


def test_files_are_found_by_their_offsets(tmp_path: Path) -> None:
    """Of any size, behind headers of any length."""
    files = {name: name.encode() * times for name, times in (("x", 0), ("y" * 150, 7), ("z/" * 90 + "z", 4000))}
    tar, entries = indexed(tmp_path, *files.items())
    assert {entry.path.decode(): content(tar, entry) for entry in entries if stat.S_ISREG(entry.mode)} == files


def test_directories_that_nobody_announces_are_there(tmp_path: Path) -> None:
    """With the mode that engines give them; one that is announced behind its content has its own."""
    announced = member("known", tarfile.DIRTYPE)
    announced.mode, announced.mtime = 0o700, 5
    _, entries = indexed(tmp_path, ("known/a", b""), ("implied/deep/a", b""), announced)
    found = {entry.path: (entry.mode, entry.mtime) for entry in entries if stat.S_ISDIR(entry.mode)}
    assert found == {
        b"known": (stat.S_IFDIR | 0o700, 5),
        b"implied": (stat.S_IFDIR | 0o755, 0),
        b"implied/deep": (stat.S_IFDIR | 0o755, 0),
    }


def test_symbolic_links_keep_their_targets(tmp_path: Path) -> None:
    """As bytes, and as links."""
    _, (entry,) = indexed(tmp_path, member("link", tarfile.SYMTYPE, link="../\udcff/there"))
    assert (entry.path, entry.link, stat.S_ISLNK(entry.mode), entry.size) == (b"link", b"../\xff/there", True, 0)


def test_hard_links_lead_to_the_first_name_of_a_walk(tmp_path: Path) -> None:
    """Whichever name has the data in the tar; the last member's mode and time are those of all."""
    last = member("a", tarfile.LNKTYPE, link="m")
    last.mode, last.mtime = 0o600, 9
    tar, entries = indexed(
        tmp_path, ("z", b"data"), member("m", tarfile.LNKTYPE, link="z"), last, ("other", b"not linked")
    )
    linked, other = entries[:2] + entries[3:], entries[2]
    assert [(entry.path, entry.link, entry.size) for entry in linked] == [
        (b"a", b"", 4),
        (b"m", b"a", 0),
        (b"z", b"a", 0),
    ]
    assert {(entry.mode, entry.mtime) for entry in linked} == {(stat.S_IFREG | 0o600, 9)}
    assert content(tar, linked[0]) == b"data"
    assert (other.link, content(tar, other)) == (b"", b"not linked")


def sent(folder: Path, *entries: tuple[str, bytes] | tarfile.TarInfo, path: str | None = None) -> list[str]:
    """The names that a build is sent."""
    tar = folder / "checked.tar"
    with tar.open("wb") as file:
        rewrite(io.BytesIO(tar_of(*entries)), file, bounds_of(), go_on, path)
    return [entry.path.decode() for entry in index(tar, path)]


def ignore(*lines: str, name: str = ".dockerignore") -> tuple[str, bytes]:
    return name, "\n".join(lines).encode()


FILES = [("a.txt", b"1"), ("b.txt", b"2"), ("docs/deep/c.txt", b"3"), ("docs/d.md", b"4")]


def test_what_is_ignored_is_not_indexed(tmp_path: Path) -> None:
    """`.dockerignore` takes out what it names, itself and the Dockerfile too; wherever it stands in the tar."""
    found = sent(tmp_path, DOCKERFILE, *FILES, ignore("*.txt", "docs", ".dockerignore", "Dockerfile"))
    assert found == []
    assert sent(tmp_path, ignore("# nothing"), DOCKERFILE, *FILES)[:3] == [".dockerignore", "Dockerfile", "a.txt"]


def test_folders_of_what_is_excepted_stay(tmp_path: Path) -> None:
    """A directory that is excluded comes along with what is brought back below it, and only then."""
    assert sent(tmp_path, DOCKERFILE, *FILES, ignore("*", "!docs/deep/c.txt")) == [
        "docs",
        "docs/deep",
        "docs/deep/c.txt",
    ]
    assert sent(tmp_path, DOCKERFILE, *FILES, ignore("*", "!**/*.md")) == ["docs", "docs/d.md"]


def test_the_ignore_file_beside_the_dockerfile_goes_first(tmp_path: Path) -> None:
    """Also an empty one, and with the default names; another Dockerfile's is a file like any other."""
    files = [("sub/app", b"FROM scratch\n"), DOCKERFILE, ("a.txt", b"")]
    both = [
        ignore("a.txt"),
        ignore("", name="sub/app.dockerignore"),
        ignore("Dockerfile", name="Dockerfile.dockerignore"),
    ]
    assert "a.txt" in sent(tmp_path, *files, *both, path="sub/app")
    found = sent(tmp_path, *files, *both)
    assert "a.txt" in found
    assert "Dockerfile" not in found
    assert "a.txt" not in sent(tmp_path, *files, both[0], both[1])
    lower = [("dockerfile", b"FROM scratch\n"), ("a.txt", b""), ignore("a.txt", name="dockerfile.dockerignore")]
    assert "a.txt" not in sent(tmp_path, *lower)


def test_hard_links_to_what_is_ignored(tmp_path: Path) -> None:
    """A file that has one name left has its bytes there."""
    links = [("a", b"data"), member("m", tarfile.LNKTYPE, link="a"), member("z", tarfile.LNKTYPE, link="a")]
    tar, entries = indexed(tmp_path, *links, ignore("a", ".dockerignore"))
    assert [(entry.path, entry.link, content(tar, entry)) for entry in entries] == [
        (b"m", b"", b"data"),
        (b"z", b"m", b""),
    ]


def slow_to_ignore(folder: Path) -> Path:
    """A small context whose ignore file takes seconds: no two of its many paths are alike to its patterns."""
    chance = random.Random(1)
    patterns = ["*a" + "?" * length + "c" for length in range(20, 40)]
    names = {"".join(chance.choices("ab", k=200)) for _ in range(2000)}
    tar = folder / "slow.tar"
    with tar.open("wb") as file:
        rewrite(io.BytesIO(tar_of(DOCKERFILE, ignore(*patterns), *((n, b"") for n in names))), file, bounds_of(), go_on)
    return tar


def test_an_ignore_file_takes_a_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wildcards that are slow on these very paths are refused after a while, however few they are."""
    monkeypatch.setattr(ignore_file, "PROCESSOR_MAX_S", 0.05)
    with pytest.raises(Permanent, match=r"\.dockerignore.* takes more than 0.05 s") as caught:
        index(slow_to_ignore(tmp_path))
    assert caught.value.code is ErrorCode.TOO_LARGE


def test_an_index_that_nobody_waits_for_ends(tmp_path: Path) -> None:
    """It looks at no further path once it is told to stop."""
    answers = iter([False, False, True])
    with pytest.raises(Stopped):
        index(slow_to_ignore(tmp_path), stop=lambda: next(answers))


def test_patterns_take_little_memory() -> None:
    """A context's patterns fill no memory of the daemon's with what their engine remembers of the paths."""
    script = (
        "import random\n"
        "from imagejobd.archive.ignore import IgnoreFile\n"
        "def resident_pages(): return int(open('/proc/self/statm').read().split()[1])\n"
        "file = IgnoreFile('\\n'.join('*a' + '?' * length + 'c' for length in range(20, 40)).encode())\n"
        "before = resident_pages()\n"
        "for _ in range(300):\n"
        "    file.excludes(''.join(random.choices('ab', k=250)).encode())\n"
        "print((resident_pages() - before) * 4096)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 16 * 1024 * 1024


NAME = st.lists(st.sampled_from(["a", "b", "a-", "c" * 120, "ü", "\udcff"]), min_size=1, max_size=4).map("/".join)


@settings(max_examples=200)
@given(st.dictionaries(NAME, st.binary(max_size=1500), max_size=12))
def test_the_index_is_what_tarfile_reads(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    """Every file once, with its bytes; parents before children."""
    kept = {name: data for name, data in files.items() if not any(other.startswith(f"{name}/") for other in files)}
    tar, entries = indexed(tmp_path_factory.mktemp("index"), *kept.items())
    found = {entry.path: content(tar, entry) for entry in entries if stat.S_ISREG(entry.mode)}
    assert found == {name.encode(errors="surrogateescape"): data for name, data in kept.items()}
    paths = [entry.path.split(b"/") for entry in entries]
    assert paths == sorted(paths)
    assert all(path[:-1] in [[], *paths[:at]] for at, path in enumerate(paths))


@pytest.mark.parametrize("damage", [b"\0", b"\xff"], ids=["zeros", "noise"])
def test_a_damaged_tar_is_refused(tmp_path: Path, damage: bytes) -> None:
    """A header that is none, or a tar that is cut in one, is no index of something else."""
    tar, _ = indexed(tmp_path, ("a", b"data"))
    whole = tar.read_bytes()
    tar.write_bytes(whole[:1024] + damage * 100 + whole[1124:])
    with pytest.raises(Permanent, match="damaged") as caught:
        index(tar)
    assert caught.value.code is ErrorCode.INVALID
    tar.write_bytes(whole[:1100])
    with pytest.raises(Permanent, match="damaged"):
        index(tar)
