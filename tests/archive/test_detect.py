"""What a payload is: bytes decide, what was meant to be built is never silently kept, and nothing else fails."""

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st
from image_tars import Files, layer_of, layout_of, saved_of, tar_of

from imagejobd.archive import Detected, Stopped, What, detect
from imagejobd.dockerfile.policy import DOCKERFILE_MAX_BYTES
from imagejobd.model.errors import ErrorCode, Permanent

PACKS = {"": bytes, "+gzip": gzip.compress, "+bzip2": bz2.compress, "+xz": lzma.compress, "+zstd": zstd.compress}
DOCKERFILE: Files = {"Dockerfile": b"FROM scratch\n"}
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


def detected(
    data: bytes, *, max_bytes: int = 1 << 26, max_entries: int = 1000, stop: Callable[[], bool] = lambda: False
) -> Detected:
    return detect(io.BytesIO(data), max_bytes=max_bytes, max_entries=max_entries, stop=stop)


def refusal(data: bytes, **bounds: int) -> Permanent:
    with pytest.raises(Permanent) as caught:
        detected(data, **bounds)  # type: ignore[arg-type]
    return caught.value


@pytest.mark.parametrize(
    "text",
    [
        "FROM busybox\nRUN true\n",
        "from busybox",
        "From busybox As base\n",
        "from --platform=linux/amd64 busybox",
        "  \n\n# a comment\n\t# another\n  FROM busybox\r\n",
        "ARG VERSION=1\nFROM busybox:$VERSION\n",
        "arg version\nfrom busybox:$version\n",
        "\ufeffFROM busybox\n",
        "# syntax=docker/dockerfile:1\nFROM busybox\n",
        "#!/usr/bin/env docker\n# syntax = evil/frontend\nwhatever\n",
        "// syntax=evil/frontend\nwhatever\n",
        "# escape=`\nFROM busybox\n",
        "FROM busybox and more than there may be\n",
        "FROM busybox\nFLY away\n",
        "from \\\n  busybox\n",
        "#" + " licence" * 2000 + "\nFROM busybox\n",
    ],
)
def test_what_begins_as_a_dockerfile_is_one(text: str) -> None:
    """A text that begins with FROM, ARG or a syntax directive is a Dockerfile, also one that is wrong further down."""
    found = detected(text.encode())
    assert (found.what, found.dockerfile) == (What.DOCKERFILE, text.removeprefix("\ufeff"))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"FROM",
        b"FROMAGE is cheese\n",
        b"From the beginning it was clear to all.\n",
        b"From alice@example.com Mon Jan  1 00:00:00 2024\nSubject: mail\n",
        b"from os import path\nprint(path)\n",
        b"arg one two\n",
        b"#!/bin/sh\necho FROM busybox\n",
        b"# Notes\n\nWhat a FROM line does\n",
        b'{"syntax": "x", "FROM": "busybox"}',
        b"RUN true\nFROM busybox\n",
        b"FROM busybox\n\0",
        "FROM busybox\n".encode("utf-16"),
        PNG,
        bytes(10_240),
        gzip.compress(b"FROM busybox\n", mtime=0),
        gzip.compress(PNG, mtime=0),
        gzip.compress(tar_of(DOCKERFILE), mtime=0)[:20],
        b"\x1f\x8b\x08 no gzip",
        b"BZh no bzip2",
        b"\x28\xb5\x2f\xfd" + b"\xff" * 40,
    ],
)
def test_everything_else_is_a_file(data: bytes) -> None:
    """Prose, scripts, JSON, pictures, empty and broken things are files, whatever words are in them."""
    assert detected(data).what is What.FILE


@pytest.mark.parametrize("suffix", PACKS)
@pytest.mark.parametrize(
    ("files", "what"),
    [
        (DOCKERFILE, What.CONTEXT),
        ({"./src/main.c": b"", "./Dockerfile": b"x"}, What.CONTEXT),
        ({"dockerfile": b"x"}, What.CONTEXT),
        ({"Dockerfile": "elsewhere"}, What.CONTEXT),
        ({"/Dockerfile": b"x"}, What.CONTEXT),
        (saved_of(layer_of("a")), What.IMAGE_ARCHIVE),
        (layout_of(layer_of("a")), What.IMAGE_ARCHIVE),
        ({f"./{name}": content for name, content in layout_of(layer_of("a")).items()}, What.IMAGE_ARCHIVE),
        # Both marks: it has a Dockerfile, and web applications have a manifest.json.
        (saved_of(layer_of("a")) | DOCKERFILE, What.CONTEXT),
        (layout_of(layer_of("a")) | DOCKERFILE, What.CONTEXT),
        ({"manifest.json": b'{"name": "app"}'}, What.FILE),
        ({"manifest.json": b"[]"}, What.FILE),
        ({"manifest.json": "oci-layout"}, What.FILE),
        ({"sub/Dockerfile": b"x", "sub/oci-layout": b"x", "DOCKERFILE": b"x"}, What.FILE),
    ],
)
def test_tars_by_what_is_at_their_top(files: Files, what: What, suffix: str) -> None:
    """A Dockerfile makes a context, else the marks of an image an image archive, else a tar is a file as any other."""
    assert detected(PACKS[suffix](tar_of(files))) == Detected(what, f"application/x-tar{suffix}")


def test_a_folder_named_dockerfile_is_none() -> None:
    """A directory cannot be meant as a Dockerfile."""
    folder = tarfile.TarInfo("Dockerfile")
    folder.type = tarfile.DIRTYPE
    assert detected(tar_of({}, folder)).what is What.FILE


@pytest.mark.parametrize("suffix", PACKS)
def test_a_tar_that_cannot_be_read_is_refused(suffix: str) -> None:
    """Half a tar may have been a context or an image: its sender hears of it."""
    # More than bzip2 and zstd hold back before they give anything out.
    data = PACKS[suffix](tar_of({f"file{number}": os.urandom(100_000) for number in range(20)} | DOCKERFILE))
    fault = refusal(data[: len(data) // 2 + 100])
    assert (fault.code, "cut short" in fault.message) == (ErrorCode.INVALID, True)


def test_bounds() -> None:
    """Too large for a Dockerfile, too many members, and a bomb are refused; what is no tar is not unpacked at all."""
    text = b"FROM busybox\n" + b"#" * DOCKERFILE_MAX_BYTES
    assert refusal(text).code is ErrorCode.TOO_LARGE
    assert refusal(tar_of({str(number): b"" for number in range(101)}), max_entries=100).code is ErrorCode.TOO_LARGE
    assert detected(tar_of({str(number): b"" for number in range(100)}), max_entries=100).what is What.FILE
    bomb = gzip.compress(tar_of({"zeros": bytes(32 << 20)}))
    assert refusal(bomb, max_bytes=1 << 20).code is ErrorCode.TOO_LARGE
    began = time.process_time()
    assert detected(gzip.compress(bytes(64 << 20)), max_bytes=8 << 20).what is What.FILE
    assert time.process_time() - began < 20


def test_a_dockerfile_that_is_no_text() -> None:
    """A Dockerfile in another encoding is refused with its line."""
    fault = refusal("FROM busybox\nLABEL a=ä\n".encode("latin-1"))
    assert (fault.code, "(line 2)" in fault.message) == (ErrorCode.INVALID, True)


@pytest.mark.parametrize(
    ("head", "media_type"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "image/webp"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "application/octet-stream"),
        (b"%PDF-1.7\n", "application/pdf"),
        (b"PK\x03\x04", "application/zip"),
        (gzip.compress(b"x", mtime=0), "application/gzip"),
        (b"<html><script>", "application/octet-stream"),
        (b"<svg>", "application/octet-stream"),
        (json.dumps({}).encode(), "application/octet-stream"),
        (b"", "application/octet-stream"),
    ],
)
def test_media_types(head: bytes, media_type: str) -> None:
    """What is sure by its first bytes is named; nothing that a browser would run ever is."""
    assert detected(head).media_type == media_type


def test_gnu_tar_and_sparse_files() -> None:
    """What GNU tar makes, with sparse files of either form before the Dockerfile, is read to the Dockerfile."""
    script = """
    cd "$(mktemp -d)" && truncate -s 1M a && printf x >> a && truncate -s 3M a && echo FROM scratch > b
    tar -c --sparse --format=$0 --transform=s/^b/Dockerfile/ a b; rm a b; rmdir "$PWD"
    """
    for form in ("gnu", "posix"):
        data = subprocess.run(["sh", "-c", script, form], check=True, capture_output=True).stdout
        assert detected(data).what is What.CONTEXT


@pytest.mark.parametrize(
    "head",
    [
        b" " * 70_000,
        b"\n" * 70_000,
        b" #\n" * 30_000,
        b" \t\f\r\n" * 15_000,
        b"from " + b" " * 70_000 + b"x y",
        b"from " + b"--a " * 16_000 + b"x y",
        b"from --" + b"a" * 60_000 + b" x y",
        b"from " + b"x" * 60_000 + b" y",
        b"arg a=" + b" " * 60_000 + b"\r\r",
        b"# " + b" " * 60_000 + b"syntax x",
        b'[{"' + b" " * 60_000,
    ],
)
def test_looking_at_text_takes_no_time(head: bytes) -> None:
    """No text is such that looking for an instruction in it takes long."""
    began = time.process_time()
    detected(head)
    assert time.process_time() - began < 5


def test_detecting_stops_when_told() -> None:
    """Reading ends when the caller says so."""
    with pytest.raises(Stopped):
        detected(tar_of({"a": b"x"}), stop=lambda: True)


SEEDS = [
    tar_of(DOCKERFILE),
    tar_of(saved_of(layer_of("a"))),
    b"FROM busybox\n",
    PNG,
    *(pack(PNG) for pack in PACKS.values()),
]


@settings(max_examples=500, deadline=None)
@given(data=st.binary(max_size=2000) | st.text(max_size=200).map(str.encode))
def test_any_bytes(data: bytes) -> None:
    """Random bytes are detected, or refused as a Dockerfile that is no text; no other error is raised."""
    with suppress(Permanent):
        detected(data)


@settings(max_examples=300, deadline=None)
@given(seed=st.sampled_from(SEEDS), change=st.data())
def test_changed_bytes(seed: bytes, change: st.DataObject) -> None:
    """Bytes near to those of every sort are detected or refused, and nothing else ever is raised."""
    data = bytearray(seed)
    for _ in range(change.draw(st.integers(1, 6))):
        data[change.draw(st.integers(0, len(data) - 1))] = change.draw(st.integers(0, 255))
    with suppress(Permanent):
        detected(bytes(data[: change.draw(st.integers(0, len(data)))]))
