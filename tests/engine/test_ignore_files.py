"""Ignore files with a real engine: an image has of a context what `docker build` of the same folder gives it."""

import io
import random
import re
import tarfile
from pathlib import Path

import msgspec
import pytest
from builds import FROM_BASE, output, run

from harness.base_image import BUSYBOX
from harness.engine import PrivateEngine
from imagejobd.archive import ContextBounds, index, rewrite
from imagejobd.engine.build import BuildRequest
from imagejobd.engine.client import Engine
from imagejobd.model.job import uuid7

SHOW = "COPY . /x\nRUN cd /x && find . -mindepth 1 -exec stat -c '%n %F %a %s' {} + | sort\n"
NAMES = ("a", "b.txt", "docs", "lib", "x.md", ".env", "Dockerfile.old")
PATTERNS = (
    *("a", "*.txt", "**/*.md", "docs", "docs/**", "lib/*", "*/lib", "**", "*", ".env", "[ab]*", "Dockerfile*"),
    *("!a", "!docs/a", "!lib/docs/x.md", ".dockerignore", "# none", "", "/lib", "docs/../a"),
)
# Docker's clients before 23 do not look into an excluded folder for what such a pattern brings back.
WILD_EXCEPTIONS = ("!**/b.txt", "!*/lib/*")

LINE = re.compile(r"^(?P<path>\./\S+) (?P<kind>[a-z ]+?) (?P<mode>\d+) (?P<size>\d+)$", re.MULTILINE)


def shapes(shown: str) -> list[tuple[str, str, str]]:
    """Paths, kinds and modes; a file is of one kind whether it is empty or not."""
    return [
        (match["path"], match["kind"].replace("regular empty file", "regular file"), match["mode"])
        for match in LINE.finditer(shown)
    ]


def tree(rng: random.Random, folder: Path, depth: int = 0) -> None:
    """Files, folders with modes of their own, and links."""
    for name in rng.sample(NAMES, rng.randint(2, 5)):
        path = folder / name
        if depth < 3 and rng.random() < 0.5:
            path.mkdir(mode=rng.choice([0o700, 0o755, 0o711]))
            tree(rng, path, depth + 1)
        elif rng.random() < 0.2:
            path.symlink_to(rng.choice(NAMES))
        else:
            path.write_bytes(b"x" * rng.randint(0, 9))


def checked(folder: Path, source: Path, dockerfile_path: str | None) -> Path:
    """The context as the store keeps it; its members in another order than a walk's."""
    given = io.BytesIO()
    with tarfile.open(fileobj=given, mode="w") as tar:
        for path in sorted(source.rglob("*"), key=lambda path: path.name):
            tar.add(path, str(path.relative_to(source)), recursive=False)
    given.seek(0)
    context = folder / f"{uuid7()}.tar"
    with context.open("wb") as file:
        rewrite(given, file, ContextBounds(max_bytes=1 << 20, max_entries=1000), lambda: False, dockerfile_path)
    return context


@pytest.mark.parametrize("number", range(4))
async def test_what_docker_build_copies(client: Engine, engine: PrivateEngine, tmp_path: Path, number: int) -> None:
    """Names, kinds and modes are the same, with the ignore file at the top or the one beside the Dockerfile."""
    rng = random.Random(number)
    is_old = int((await client.ping()).version.partition(".")[0]) < 23
    patterns = PATTERNS if is_old else PATTERNS + WILD_EXCEPTIONS
    source = tmp_path / "source"
    source.mkdir()
    tree(rng, source)
    dockerfile_path = rng.choice([None, "sub/other"])
    text = FROM_BASE + SHOW
    (source / "sub").mkdir()
    for path in ("Dockerfile", "sub/other"):
        (source / path).write_text(text)
    (source / ".dockerignore").write_text("\n".join(rng.sample(patterns, 6)))
    if rng.random() < 0.5:
        (source / "sub/other.dockerignore").write_text("\n".join(rng.sample(patterns, 6)))
    file = dockerfile_path or "Dockerfile"
    arguments = ("build", "--quiet", "--network=none", "--file", str(source / file), str(source))
    image = engine.docker(*arguments)
    show = SHOW.partition("RUN ")[2]
    theirs = engine.docker("run", "--rm", "--network=none", image, "sh", "-c", show)
    context = checked(tmp_path, source, dockerfile_path)
    build = BuildRequest(
        context=context,
        entries=index(context, dockerfile_path),
        dockerfile=text,
        build_id=uuid7(),
        builder="buildkit",
        network="none",
        bases={BUSYBOX: BUSYBOX},
        no_cache=True,
    )
    ours = output(await run(client, build))
    assert shapes(ours) == shapes(theirs)
    # Held to the folder itself: some of docker's clients send files of it without their content.
    sizes = {match["path"]: int(match["size"]) for match in LINE.finditer(ours) if match["kind"] == "regular file"}
    assert sizes == {path: (source / path).stat().st_size for path in sizes}
    # The classic builder's own client has another order, and no ignore file beside the Dockerfile.
    classic = output(await run(client, msgspec.structs.replace(build, builder="classic")))
    assert [shape for shape in shapes(classic) if "dockerignore" not in shape[0]] == [
        shape for shape in shapes(theirs) if "dockerignore" not in shape[0]
    ]
    engine.docker("rmi", image)
