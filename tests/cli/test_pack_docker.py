"""What of a folder is sent is what `docker build` sends of it, for generated trees and ignore files."""

import os
import random
import stat
import tarfile
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import pytest

from harness.engine import PrivateEngine
from imagejobd.cli.pack import Folder

# Together 200 trees. Each context has the patterns of all its trees in one ignore file, each below its tree's name.
CONTEXTS, TREES = 5, 40
SEED = 13
NAMES = ("a", "b", "ab", "a.txt", "b.txt", ".hidden", "dir", "x y", "é", "c[d", "Ab", "tmp")
PARTS = (*(name for name in NAMES if "[" not in name), "c\\[d", "*", "?", "a*", "*.txt", "[ab]", "[^a]*", "[a-c]", "?b")
PARTS += ("\\.hidden", ".*", ".", "a^b")
ANYWHERE = ("**", "**", "a**", "**b")
# For the whole context: the forms that a prefix would change.
WHOLE = ("**/*.tmp", "/**/tmp/a", " **/x y\t", "# **/a", "  # b", "**/.hidden/**", "!**/keep", "**/[!x]b", "t1*/dir")


class Entry(NamedTuple):
    """A file, directory or link as it arrives. `target` is where a link leads."""

    mode: int
    target: str = ""
    content: bytes = b""


@pytest.mark.parametrize("number", range(CONTEXTS))
def test_generated_trees(engine: PrivateEngine, tmp_path: Path, number: int) -> None:
    """Every file, directory and link, with mode, target and content, and nothing else."""
    chance = random.Random(SEED + number)
    context, out = tmp_path / "context", tmp_path / "out"
    context.mkdir()
    lines = ["\ufeff# generated"]
    is_old = has_old_matcher(engine)
    lines += [] if is_old else chance.sample(WHOLE, 4)
    for tree in range(TREES):
        plant(chance, context / f"t{tree}")
        lines += patterns(chance, f"t{tree}", is_old)
    (context / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    (context / ".dockerignore").write_text("\n".join(lines) + "\n.dockerignore\nDockerfile\n")
    engine.docker("build", "--output", f"type=local,dest={out}", str(context))
    docker, ours, disk = on_disk(out), packed(context), on_disk(context)
    assert without_content(ours) == without_content(docker)
    # Content is that of the folder: BuildKit's own copy has been seen to come out with a file emptied.
    assert ours == {name: disk[name] for name in ours}
    # Neither everything nor nothing was left out.
    assert len(disk) / 4 < len(docker) < len(disk) * 9 / 10


def has_old_matcher(engine: PrivateEngine) -> bool:
    """Whether the client is of the time before moby/patternmatcher, as 20.10's is: that looks at one of the directories
    above only, and walks into excluded ones for exceptions without wildcards only. Without both it says the same."""
    return int(engine.docker("version", "--format", "{{.Client.Version}}").partition(".")[0]) < 23


def plant(chance: random.Random, folder: Path, depth: int = 3) -> None:
    folder.mkdir()
    for name in chance.sample(NAMES, chance.randint(2, 5)):
        path = folder / name
        sort = chance.random()
        if depth and sort < 0.45:
            plant(chance, path, depth - 1)
        elif sort < 0.55:
            path.symlink_to(chance.choice(("a", "../b", "/etc/passwd", "nowhere")))
        else:
            path.write_text(name * chance.randint(0, 3))
            path.chmod(chance.choice((0o644, 0o600, 0o755, 0o4755)))
    (folder / "keep").write_text("keep")
    folder.chmod(chance.choice((0o755, 0o700, 0o1777)))


def patterns(chance: random.Random, tree: str, is_old: bool) -> list[str]:
    lines = []
    for _ in range(chance.randint(1, 6)):
        parts = [chance.choice(PARTS) for _ in range(chance.randint(1, 3))]
        if parts[0] != "." and chance.random() < 0.1:
            parts.insert(1, "..")
        if not is_old and chance.random() < 0.3:
            parts.insert(chance.randint(0, len(parts)), chance.choice(ANYWHERE))
        mark = "!" if not is_old and chance.random() < 0.35 else ""
        before, after = chance.choice(("", "", "/", "./", " ", "\t/")), chance.choice(("", "", "/", " ", "/."))
        lines.append(f"{mark}{before}{tree}/{'/'.join(parts)}{after}")
    return lines


def on_disk(root: Path) -> dict[str, Entry]:
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            mode = path.lstat().st_mode
            target = str(path.readlink()) if stat.S_ISLNK(mode) else ""
            content = path.read_bytes() if stat.S_ISREG(mode) else b""
            found[path.relative_to(root).as_posix()] = Entry(0 if target else mode, target, content)
    return found


def without_content(entries: dict[str, Entry]) -> dict[str, Entry]:
    return {name: entry._replace(content=b"") for name, entry in entries.items()}


def packed(root: Path) -> dict[str, Entry]:
    """What arrives at a builder: without the two files that the daemon takes away again, because they are ignored."""
    kinds = {tarfile.REGTYPE: stat.S_IFREG, tarfile.DIRTYPE: stat.S_IFDIR}
    found = {}
    with tarfile.open(fileobj=BytesIO(b"".join(Folder(root).tar()))) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isreg() else None
            mode = 0 if member.issym() else member.mode | kinds[member.type]
            found[member.name] = Entry(mode, member.linkname, file.read() if file else b"")
    return {name: entry for name, entry in found.items() if name not in ("Dockerfile", ".dockerignore")}
