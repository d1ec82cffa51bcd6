"""What a packed folder holds besides what docker's client would send, and what is refused."""

import os
import socket
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path

import pytest

from harness.services import require_root
from imagejobd.archive import ContextBounds, rewrite
from imagejobd.cli.errors import CommandError
from imagejobd.cli.pack import OUTSIDE_DOCKERFILE, Folder

NOBODY = 65534
BOUNDS = ContextBounds(max_bytes=1 << 30, max_entries=1000)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM scratch\n")
    return folder


def members(folder: Folder) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=BytesIO(b"".join(folder.tar()))) as tar:
        return {member.name: member for member in tar}


def content(folder: Folder, name: str) -> str:
    with tarfile.open(fileobj=BytesIO(b"".join(folder.tar()))) as tar:
        file = tar.extractfile(name)
        assert file is not None
        return file.read().decode()


def test_the_daemon_reads_it(root: Path) -> None:
    """Long names, names that are not UTF-8, empty files and links come through the daemon's own check."""
    (root / ("long" * 50)).write_text("x")
    Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9")).write_text("é")
    (root / "empty").touch()
    (root / "link").symlink_to("/absolute/target")
    (root / "hard").hardlink_to(root / "empty")
    packed = BytesIO(b"".join(Folder(root).tar()))
    assert rewrite(packed, BytesIO(), BOUNDS, lambda: False) == "FROM scratch\n"


def test_the_same_folder_is_the_same_tar(root: Path) -> None:
    """Twice packed it is the same bytes, whose owner is root, whoever packs."""
    for name in ("b", "a", "B", "é"):
        (root / name).write_text(name)
        os.utime(root / name, (1, 1))
    assert b"".join(Folder(root).tar()) == b"".join(Folder(root).tar())
    packed = members(Folder(root))
    assert list(packed) == ["B", "Dockerfile", "a", "b", "é"]
    assert {(member.uid, member.gid, member.uname) for member in packed.values()} == {(0, 0, "")}
    assert packed["a"].mtime == 1


def test_hard_links(root: Path) -> None:
    """A second name of a file is a link to the first; a Dockerfile is a file of its own, which the daemon needs."""
    (root / "a").write_text("content")
    (root / "b").hardlink_to(root / "a")
    (root / "c").hardlink_to(root / "Dockerfile")
    packed = members(Folder(root))
    assert (packed["b"].type, packed["b"].linkname) == (tarfile.LNKTYPE, "a")
    assert packed["Dockerfile"].isreg()
    assert packed["c"].isreg()


def test_what_the_daemon_needs_is_sent(root: Path) -> None:
    """Dockerfile and ignore file are in the tar even where everything is ignored, and so are folders above them."""
    (root / "docker").mkdir()
    (root / "docker" / "Dockerfile").write_text("FROM scratch\n")
    (root / ".dockerignore").write_text("**\n")
    assert list(members(Folder(root))) == [".dockerignore", "Dockerfile"]
    folder = Folder(root, root / "docker" / "Dockerfile")
    assert folder.dockerfile_path == "docker/Dockerfile"
    assert list(members(folder)) == [".dockerignore", "docker", "docker/Dockerfile"]


def test_folders_above_what_is_brought_back(root: Path) -> None:
    """An excluded folder comes with its own mode where something in it is not excluded."""
    (root / "a" / "b").mkdir(parents=True)
    (root / "a").chmod(0o700)
    (root / "a" / "b" / "keep").touch()
    (root / "a" / "other").touch()
    (root / ".dockerignore").write_text("a\n!a/b/keep\n")
    packed = members(Folder(root))
    assert {"a", "a/b", "a/b/keep"} <= packed.keys()
    assert "a/other" not in packed
    assert packed["a"].mode == 0o700


def test_a_dockerfile_from_elsewhere(root: Path, tmp_path: Path) -> None:
    """It is sent under a name of its own, with an ignore file that hides it, as its own ignore file or that of the
    folder says besides."""
    outside = tmp_path / "Other"
    outside.write_text("FROM scratch AS other\n")
    (root / ".dockerignore").write_text("secret")
    (root / "secret").touch()
    folder = Folder(root, outside)
    assert folder.dockerfile_path == OUTSIDE_DOCKERFILE
    assert content(folder, OUTSIDE_DOCKERFILE) == "FROM scratch AS other\n"
    assert content(folder, f"{OUTSIDE_DOCKERFILE}.dockerignore").split() == ["secret", f"/{OUTSIDE_DOCKERFILE}*"]
    assert "secret" not in members(folder)
    (tmp_path / "Other.dockerignore").write_text("nothing\n")
    assert "secret" in members(Folder(root, outside))


def test_an_ignore_file_beside_the_dockerfile(root: Path) -> None:
    """It counts instead of that of the folder."""
    (root / "Dockerfile.dockerignore").write_text("a\n")
    (root / ".dockerignore").write_text("b\n")
    for name in ("a", "b"):
        (root / name).touch()
    assert {"a", "b"} & members(Folder(root)).keys() == {"b"}


def test_a_linked_dockerfile(root: Path) -> None:
    """A link is followed to the file that it leads to, because the daemon reads no link for the Dockerfile."""
    (root / "real").write_text("FROM scratch AS real\n")
    (root / "Dockerfile").unlink()
    (root / "Dockerfile").symlink_to("real")
    assert Folder(root).dockerfile_path == "real"


def test_lower_case(root: Path) -> None:
    """Docker takes `dockerfile` where there is no `Dockerfile`, and so does the daemon."""
    (root / "Dockerfile").rename(root / "dockerfile")
    assert Folder(root).dockerfile_path is None


def test_sockets(root: Path) -> None:
    """A socket or FIFO is refused by name, unless it is ignored."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "api.sock"))
        os.mkfifo(root / "pipe")
        with pytest.raises(CommandError, match=r"'api\.sock' is a socket"):
            Folder(root)
        (root / ".dockerignore").write_text("*.sock\n")
        with pytest.raises(CommandError, match="'pipe' is a FIFO"):
            Folder(root)
        (root / ".dockerignore").write_text("*.sock\npipe\n")
        assert "pipe" not in members(Folder(root))


def test_a_file_that_changes(root: Path) -> None:
    """A file that is cut while it is sent ends the sending; of one that grows, what was there is sent."""
    (root / "grows").write_text("12")
    folder = Folder(root)
    (root / "grows").write_text("1234")
    assert content(folder, "grows") == "12"
    (root / "grows").write_text("1")
    with pytest.raises(CommandError, match="'grows' became shorter"):
        b"".join(folder.tar())
    (root / "grows").unlink()
    with pytest.raises(CommandError, match="cannot read 'grows'"):
        b"".join(folder.tar())


def test_folders_that_may_not_be_read() -> None:
    """One that is ignored is passed over, another is named."""
    require_root("to be somebody else")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        (root / "Dockerfile").write_text("FROM scratch\n")
        (root / "closed").mkdir(mode=0o700)
        (root / ".dockerignore").write_text("closed\n!**/keep\n")
        os.seteuid(NOBODY)
        try:
            assert list(members(Folder(root))) == [".dockerignore", "Dockerfile"]
        finally:
            os.seteuid(0)
        (root / ".dockerignore").unlink()
        os.seteuid(NOBODY)
        try:
            with pytest.raises(CommandError, match=r"cannot read .*closed"):
                Folder(root)
        finally:
            os.seteuid(0)


@pytest.mark.parametrize("ignore", ["[", "!\n"])
def test_a_malformed_ignore_file(root: Path, ignore: str) -> None:
    """Its line is named."""
    (root / ".dockerignore").write_text(ignore)
    with pytest.raises(CommandError, match=r"\.dockerignore, line 1"):
        Folder(root)


def test_no_dockerfile(root: Path) -> None:
    """What is missing is said with how to name another."""
    (root / "Dockerfile").unlink()
    with pytest.raises(CommandError, match="name it with -f"):
        Folder(root)
    with pytest.raises(CommandError, match="seen from here"):
        Folder(root, root / "absent")
