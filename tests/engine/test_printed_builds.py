"""What is printed builds the same image as the text it was printed from, as the engine reads that.

Generated Dockerfiles of many stages are built twice by the real engine: as printed, with pinned names, and as written.
What one of the two refuses is skipped; what both build has to be the same. `IMAGEJOBD_FUZZ_FILES` says how many files.
"""

import io
import json
import os
import random
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from builds import request, run

from harness.base_image import BUSYBOX
from harness.building import RememberedBases, nobody_known
from harness.engine import PrivateEngine
from imagejobd.dockerfile.policy import Policy
from imagejobd.engine import images
from imagejobd.engine.base_images import BaseImages
from imagejobd.engine.client import Engine
from imagejobd.engine.images import export
from imagejobd.engine.leases import TagLeases
from imagejobd.engine.stream import Built
from imagejobd.model.errors import Permanent
from imagejobd.model.job import uuid7
from imagejobd.model.reference import ImageReference

FILES = int(os.environ.get("IMAGEJOBD_FUZZ_FILES", "20"))
# Fewer have been refused ever: else nothing would be compared.
COMPARED_MIN_SHARE = 0.5
BASES = ("imagejobd-test/one:1", "imagejobd-test/two:1")
BUILD_ARGS = {"PICK": "two", "EMPTY": "", "LINE": "a b"}


class Writer:
    """Writes Dockerfiles by chance, the same for the same seed."""

    def __init__(self, seed: int, *, knows_heredocs: bool) -> None:
        self._random = random.Random(seed)
        self._knows_heredocs = knows_heredocs
        self._stages: list[str] = []

    def dockerfile(self) -> str:
        head = self._any("", "", "# syntax=docker/dockerfile:1\n", "# escape=\\\n", "# a comment\n\n")
        args = [f"ARG {name}={value}\n" for name, value in (("BASE", "one"), ("PICK", "one"), ("EMPTY", "x"))]
        return head + "".join(args) + "".join(self._stage(index) for index in range(self._random.randint(1, 4)))

    def _stage(self, index: int) -> str:
        name = self._any("", f"s{index}", f"S{index}")
        start = self._any(
            f"FROM {self._image()}", f"from  {self._image()}", f"FROM --platform=$BUILDPLATFORM {self._image()}"
        )
        text = start + (f" {self._any('AS', 'as')} {name}" if name else "") + self._end()
        text += "".join(self._instruction(index) for _ in range(self._random.randint(0, 6)))
        self._stages.append(name)
        return text

    def _image(self) -> str:
        named = [name for name in self._stages if name]
        expanded = ("${BASE}", "$PICK", "${EMPTY:-one}", "${PICK:+two}", "${BASE%%e*}e", "${BASE/o/o}", "${UNSET-one}")
        choices = [f"imagejobd-test/{self._any(*expanded)}:1", *BASES]
        return self._any(*choices, *(self._any(name, name.upper()) for name in named))

    def _origin(self, index: int) -> str:
        numbers = [str(number) for number in range(index)]
        return self._any(*BASES, *numbers, *filter(None, self._stages))

    def _instruction(self, index: int) -> str:
        gap = self._any(" ", "  ", "\t", " \\\n  ", " \\\n# between\n  ")
        body = self._any(
            f"COPY --from={self._origin(index)}{gap}/mark /from{self._random.randint(0, 9)}",
            f"COPY{gap}Dockerfile /d/",
            'COPY ["Dockerfile", "/with space/"]',
            f"ADD --chown=1:2{gap}Dockerfile /added",
            f'ENV A{index}=b{gap}C="d e" F=g\\ h',
            f"ENV OLD{gap}form of it",
            f"ARG PICK{gap}\nLABEL picked=$PICK-${{EMPTY}}",
            f'LABEL a.b=\'c d\'{gap}e="f\\"g"',
            f"WORKDIR{gap}/w{index}",
            f"USER{gap}nobody",
            "EXPOSE 80 443/udp",
            "VOLUME /v1 /v2",
            f'CMD{gap}["a", "b c", "\\u00e9"]',
            f"CMD{gap}echo  two   spaces",
            'SHELL ["/bin/sh", "-c"]',
            "STOPSIGNAL 9",
            f"HEALTHCHECK --interval=5s --retries=3{gap}CMD test -f /x",
            "healthcheck none",
            "ONBUILD RUN true",
            "ONBUILD COPY --from=0 /mark /onbuild",
            'ENTRYPOINT ["/bin/sh"]',
            *self._of_heredocs(),
        )
        # What an image keeps of a trigger is its text, spaces included, and what is printed has none to spare.
        return body + ("\n" if body.startswith("ONBUILD") else self._end())

    def _of_heredocs(self) -> list[str]:
        if not self._knows_heredocs:
            return []
        return [
            "COPY <<EOF /heredoc\nFROM evil\n$PICK\nEOF",
            "COPY <<-'E1' <<\"E2\" /two/\n\tRUN $x\n\tE1\nUSER y\nE2",
        ]

    def _end(self) -> str:
        return self._any("\n", "\n", "\n\n", "\n# comment\n", "  \n")

    def _any(self, *choices: str) -> str:
        return self._random.choice(choices)


async def build_id(client: Engine, folder: Path, text: str, names: dict[str, str]) -> str:
    """The id of what is built of `text`; "" where the engine refuses it."""
    files = {"Dockerfile": b"FROM the-context's-own\n"}
    with suppress(Permanent):
        last = (await run(client, request(folder, "buildkit", text, files, bases=names, build_args=BUILD_ARGS)))[-1]
        assert isinstance(last, Built)
        return last.image_id
    return ""


async def content(client: Engine, image_id: str) -> tuple[Any, list[list[tuple[Any, ...]]]]:
    """Configuration and files of an image, without times: steps of an equal key may have been made at two of them."""
    archive = io.BytesIO(b"".join([block async for block in export(client, image_id)]))
    with tarfile.open(fileobj=archive) as tar:

        def read(name: str) -> bytes:
            file = tar.extractfile(name)
            assert file is not None
            return file.read()

        manifest = json.loads(read("manifest.json"))[0]
        config = json.loads(read(manifest["Config"]))
        return config["config"], [_files(read(layer)) for layer in manifest["Layers"]]


def _files(layer: bytes) -> list[tuple[Any, ...]]:
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        return [
            (one.name, one.type, one.mode, one.uid, one.gid, one.linkname, one.isreg() and tar.extractfile(one).read())
            for one in tar
        ]


async def test_what_is_printed_builds_what_was_written(client: Engine, engine: PrivateEngine, tmp_path: Path) -> None:
    """Configuration for configuration and file for file, on this engine."""
    for base in BASES:
        mark = f"FROM {BUSYBOX}\nLABEL base={base}\nCOPY mark /\n"
        await run(client, request(tmp_path, "buildkit", mark, {"mark": base.encode()}, tags=(base,)))
    bases = BaseImages(client, TagLeases(client, nobody_known), RememberedBases())
    knows_heredocs = (await client.ping()).knows_heredocs("buildkit")
    policy, compared = Policy(), 0
    for seed in range(FILES):
        text = Writer(seed, knows_heredocs=knows_heredocs).dockerfile()
        try:
            plan = policy.plan(text, build_args=BUILD_ARGS, knows_heredocs=knows_heredocs)
        except Permanent:
            continue
        wanted = plan.images()
        async with bases.pin(
            [(base.reference, base.platform or "") for base in wanted],
            repository=f"imagejobd/{uuid7()}",
            policy="never",
        ) as pinned:
            sent = plan.printed({base.key: name for base, name in zip(wanted, pinned.names, strict=True)})
            printed = await build_id(client, tmp_path, sent, {name: name for name in pinned.names})
        # As it is written, the engine may take a frontend from a registry that is not there.
        written = await build_id(client, tmp_path, text.replace("# syntax=", "# was="), {base: base for base in BASES})
        if printed and written:
            is_same = printed == written or await content(client, printed) == await content(client, written)
            assert is_same, f"seed {seed}:\n{text}\n----\n{sent}"
            compared += 1
    assert compared >= FILES * COMPARED_MIN_SHARE
    for base in BASES:
        await images.remove(client, ImageReference.parse(base))
