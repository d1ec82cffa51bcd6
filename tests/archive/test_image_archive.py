"""Promises of the image checker: what real tools write passes, and every damage is found and named."""

import bz2
import gzip
import io
import itertools
import json
import lzma
import subprocess
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st
from image_tars import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Files,
    blobs_of,
    config_of,
    described,
    hex_of,
    index_of,
    layer_of,
    layout_of,
    saved_of,
    sparse_of,
    tar_of,
    tops_of,
)

from harness.base_image import BUSYBOX
from harness.engine import PrivateEngine
from harness.services import program
from imagejobd.archive import Stopped, check_image_archive
from imagejobd.archive import contents as contents_module
from imagejobd.archive.contents import (
    DOCUMENT_MAX_BYTES,
    ENTRIES_MAX,
    LOOKUPS_MAX,
    NAMES_MAX_BYTES,
    ImageConfig,
    decoded,
)
from imagejobd.archive.images import DEPTH_MAX
from imagejobd.model.errors import ErrorCode, Permanent

ONE, TWO = layer_of("one"), layer_of("two")
MAX_BYTES = 1 << 28


def check(data: bytes, *, max_bytes: int = MAX_BYTES, stop: Callable[[], bool] = lambda: False) -> int:
    return check_image_archive(io.BytesIO(data), max_bytes=max_bytes, stop=stop)


def refusal(data: bytes, *, max_bytes: int = MAX_BYTES) -> Permanent:
    with pytest.raises(Permanent) as caught:
        check(data, max_bytes=max_bytes)
    return caught.value


def without(files: Files, name: str) -> Files:
    return {key: content for key, content in files.items() if key != name}


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress, zstd.compress])
@pytest.mark.parametrize("files", [saved_of(ONE, TWO), layout_of(ONE, TWO), saved_of(), layout_of()])
def test_whole_archives_pass(pack: Callable[[bytes], bytes], files: Files) -> None:
    """Both sorts of archive pass in every compression, also those of an image without layers."""
    assert check(pack(tar_of(files))) == 1


def test_docker_25_writes_both_sorts_at_once() -> None:
    """A layout with a `manifest.json` beside it is checked as both."""
    config = config_of(ONE)
    names = {"Config": f"blobs/sha256/{hex_of(config)}", "Layers": [f"blobs/sha256/{hex_of(ONE)}"]}
    both = layout_of(ONE) | {"manifest.json": json.dumps([names]).encode()}
    assert check(tar_of(both)) == 1
    names["Layers"] = []
    damaged = both | {"manifest.json": json.dumps([names]).encode()}
    assert "names 0 layers" in refusal(tar_of(damaged)).message


def test_names_of_other_tools() -> None:
    """go-containerregistry names a configuration `sha256:<hex>`, and may compress the layers beside it."""
    config = config_of(ONE)
    saved = [{"Config": f"sha256:{hex_of(config)}", "RepoTags": ["x:1"], "Layers": [f"{hex_of(ONE)}.tar.gz"]}]
    files: Files = {f"sha256:{hex_of(config)}": config, f"{hex_of(ONE)}.tar.gz": gzip.compress(ONE)}
    assert check(tar_of(files | {"manifest.json": json.dumps(saved).encode()})) == 1
    damaged = files | {f"sha256:{hex_of(config)}": config + b" ", "manifest.json": json.dumps(saved).encode()}
    assert "has the digest" in refusal(tar_of(damaged)).message


def test_layers_that_images_share_are_links() -> None:
    """Older engines wrote a layer once and linked to it from the second image's folder."""
    files = saved_of(ONE, TWO)
    name = f"{hex_of(TWO)}/layer.tar"
    linked = without(files, name) | {"other/layer.tar": TWO, name: "../other/layer.tar"}
    assert check(tar_of(linked)) == 1
    hard = tarfile.TarInfo(name)
    hard.type, hard.linkname = tarfile.LNKTYPE, "other/layer.tar"
    assert check(tar_of(without(files, name) | {"other/layer.tar": TWO}, hard)) == 1


@pytest.mark.parametrize(("pack", "suffix"), [(gzip.compress, "gzip"), (zstd.compress, "zstd")])
def test_compressed_layers_are_checked_by_what_they_hold(pack: Callable[[bytes], bytes], suffix: str) -> None:
    """A layer's digest may be right and its content not the one that the configuration speaks of."""
    packed = pack(ONE)
    layer_type = f"{OCI_LAYER}+{suffix}"
    assert check(tar_of(layout_of(ONE, packed=[packed], layer_type=layer_type))) == 1
    fault = refusal(tar_of(layout_of(TWO, packed=[packed], layer_type=layer_type)))
    assert f"unpacks to sha256:{hex_of(ONE)}" in fault.message
    files = saved_of(ONE)
    assert check(tar_of(files | {f"{hex_of(ONE)}/layer.tar": packed})) == 1


def test_nested_index() -> None:
    """An index in the index is followed; of its images some may be left out, as of other platforms, but not all."""
    files = layout_of(ONE)
    [manifest] = [
        content for content in files.values() if isinstance(content, bytes) and OCI_MANIFEST.encode() in content[:90]
    ]
    absent = described(b"another platform", OCI_MANIFEST)
    for children, is_whole in (([described(manifest, OCI_MANIFEST), absent], True), ([absent], False)):
        index = index_of(*children)
        nested = files | blobs_of(index) | tops_of(described(index, OCI_INDEX))
        if is_whole:
            assert check(tar_of(nested)) == 1
        else:
            assert "none of the images" in refusal(tar_of(nested)).message


def test_deep_and_repeated_indexes_are_bounded() -> None:
    """A chain of indexes ends at a bound; one that names the same child a thousand times is read once."""
    files, top = layout_of(ONE), index_of(described(b"", OCI_MANIFEST))
    for _ in range(DEPTH_MAX + 1):
        top = index_of(described(top, OCI_INDEX))
        files |= blobs_of(top)
    fault = refusal(tar_of(files | tops_of(described(top, OCI_INDEX))))
    assert fault.code in (ErrorCode.TOO_LARGE, ErrorCode.INVALID)
    index = files["index.json"]
    assert isinstance(index, bytes)
    [child] = json.loads(layout_of(ONE)["index.json"])["manifests"]
    assert check(tar_of(layout_of(ONE) | {"index.json": index_of(*[child] * 1000)})) == 1


SAVED, LAYOUT = saved_of(ONE, TWO), layout_of(ONE, TWO)
CONFIG = f"{hex_of(config_of(ONE, TWO))}.json"
BLOB = f"blobs/sha256/{hex_of(ONE)}"


def manifest_json(**image: object) -> bytes:
    [whole] = json.loads(SAVED["manifest.json"])
    return json.dumps([whole | image]).encode()


DAMAGED = {
    "layer cut out": (without(SAVED, f"{hex_of(ONE)}/layer.tar"), "manifest.json names"),
    "wrong layer": (SAVED | {f"{hex_of(ONE)}/layer.tar": TWO}, f"has the digest sha256:{hex_of(TWO)}"),
    "wrong configuration": (SAVED | {CONFIG: config_of(TWO, ONE)}, "has the digest"),
    "no configuration": (without(SAVED, CONFIG), "which is not in it"),
    "configuration that is none": (SAVED | {CONFIG: b"picture"}, "is not the JSON that belongs there"),
    "layers left out": (SAVED | {"manifest.json": manifest_json(Layers=[])}, "names 0 layers"),
    "escape": (SAVED | {"manifest.json": manifest_json(Config="../../etc/passwd")}, "no path within it"),
    "absolute": (SAVED | {"manifest.json": manifest_json(Config="/etc/passwd")}, "no path within it"),
    "layer outside": (SAVED | {"manifest.json": manifest_json(Layers=["../x", "../y"])}, "no path within it"),
    "surrogates": (SAVED | {"manifest.json": b'[{"Config": "\\ud800"}]'}, "damaged"),
    "link out": (SAVED | {CONFIG: "../../etc/passwd"}, "no path within it"),
    "link to root": (SAVED | {CONFIG: "/etc/passwd"}, "no path within it"),
    "link to itself": (SAVED | {CONFIG: CONFIG}, "chain of more than"),
    "link loop": (SAVED | {CONFIG: "a", "a": CONFIG}, "chain of more than"),
    "no images": (SAVED | {"manifest.json": b'[{"Layers": []}]'}, "cannot be read"),
    "empty": ({"manifest.json": b"[]"}, "manifest.json"),
    "deep": (SAVED | {"manifest.json": b'[{"Config": "x", "a": ' + b"[" * 100_000}, "cannot be read"),
    "not UTF-8": (SAVED | {"manifest.json": b'[{"Config": "\xff"}]'}, "cannot be read"),
    "blob cut out": (without(LAYOUT, BLOB), "which is not in it"),
    "blob changed": (LAYOUT | {BLOB: ONE[:-1] + b"x"}, f"the blob {hex_of(ONE)} has the digest"),
    "foreign blob changed": (LAYOUT | {f"blobs/sha256/{'a' * 64}": b"x"}, f"the blob {'a' * 64} has the digest"),
    "no index": (without(LAYOUT, "index.json"), "'index.json', which is not in it"),
    "no images in the index": (LAYOUT | tops_of(), "leads to none"),
    "unknown version": (LAYOUT | {"oci-layout": b'{"imageLayoutVersion": "2.0.0"}'}, "only 1 is known"),
    "layout that is none": (LAYOUT | {"oci-layout": b"[]"}, "oci-layout"),
    "manifest left out": (LAYOUT | tops_of(described(b"x", OCI_MANIFEST)), "which is not in it"),
    "wrong size": (LAYOUT | tops_of(described(b"x", OCI_MANIFEST) | {"size": 2}) | blobs_of(b"x"), "of 2 bytes"),
    "other algorithm": (
        LAYOUT | tops_of({"mediaType": OCI_MANIFEST, "size": 1, "digest": "sha512:" + "0" * 128}),
        "only sha256",
    ),
    "digest with a path": (
        LAYOUT | tops_of({"mediaType": OCI_MANIFEST, "size": 1, "digest": "sha256:../../" + "x" * 64}),
        "only sha256",
    ),
    "neither": ({"x": b"y"}, "neither"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damage_is_named(damage: str) -> None:
    """Whatever is wrong with an archive is said, and where."""
    files, reason = DAMAGED[damage]
    fault = refusal(tar_of(files))
    assert (fault.code, reason in fault.message) == (ErrorCode.INVALID, True), fault.message


@pytest.mark.parametrize("files", [SAVED, LAYOUT], ids=["saved", "layout"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_cut_archive_never_passes(files: Files, pack: Callable[[bytes], bytes]) -> None:
    """Wherever an archive ends before its last member does, it is refused."""
    data = pack(tar_of(files))
    last = len(data) if pack is not bytes else len(tar_of(files, tarfile.TarInfo("end"))) - 10_240
    for end in range(0, min(last, len(data)) - 600, max(1, last // 60)):
        assert refusal(data[:end]).code is ErrorCode.INVALID


def test_a_name_twice_and_devices_are_refused() -> None:
    """Two members of one name would be two images for two readers; a device has nothing to do here."""
    again = tarfile.TarInfo("manifest.json")
    assert "twice" in refusal(tar_of(SAVED, again)).message
    device = tarfile.TarInfo("null")
    device.type = tarfile.CHRTYPE
    assert "device" in refusal(tar_of(SAVED, device)).message


def test_bounds() -> None:
    """Entries, documents and unpacked bytes are bounded, and a bomb in a layer takes neither memory nor time."""
    many = tar_of(SAVED, *(tarfile.TarInfo(str(number)) for number in range(ENTRIES_MAX)))
    fault = refusal(many)
    assert (fault.code, str(ENTRIES_MAX) in fault.message) == (ErrorCode.TOO_LARGE, True)
    huge = b'[{"Config": "' + b"x" * DOCUMENT_MAX_BYTES + b'"}]'
    assert refusal(tar_of(SAVED | {"manifest.json": huge})).code is ErrorCode.TOO_LARGE
    bomb = gzip.compress(bytes(64 << 20))
    data = tar_of({"bomb/layer.tar": bomb} | SAVED)
    tracemalloc.start()
    began = time.process_time()
    fault = refusal(data, max_bytes=16 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (fault.code, "'bomb/layer.tar'" in fault.message) == (ErrorCode.TOO_LARGE, True)
    assert peak < 12 << 20
    assert time.process_time() - began < 20


def test_many_documents_are_bounded() -> None:
    """Documents are kept until the archive is read, so all of them together are bounded."""
    document = b'{"schemaVersion": "' + b"x" * (DOCUMENT_MAX_BYTES - 100) + b'"}'
    fault = refusal(tar_of(SAVED | {f"blobs/{number}": document for number in range(9)}))
    assert (fault.code, "manifests and configurations" in fault.message) == (ErrorCode.TOO_LARGE, True)


def after(asked_times: int) -> Callable[[], bool]:
    """A `stop` that is true when it has been asked so often."""
    asked = itertools.count(1)
    return lambda: next(asked) > asked_times


@pytest.mark.parametrize(
    ("data", "asked_times"),
    [
        (tar_of(SAVED), 0),
        (sparse_of("hole", MAX_BYTES // 2) + tar_of(SAVED), 40),
        (tar_of(SAVED | {"manifest.json": b"[" + b",".join([manifest_json()[1:-1]] * 50) + b"]"}), 40),
    ],
    ids=["data", "hole", "images"],
)
def test_checking_stops_when_told(data: bytes, asked_times: int) -> None:
    """Reading ends when the caller says so, also where nothing is left to read from the source."""
    with pytest.raises(Stopped):
        check(data, stop=after(asked_times))


def test_holes_count_as_data() -> None:
    """The holes of all sparse members have the bound of the tar's own bytes, before one of them is unrolled."""
    assert check(sparse_of("hole", MAX_BYTES // 2) + tar_of(SAVED)) == 1
    for holes in ([1 << 61], [MAX_BYTES // 2] * 2):
        members = [sparse_of(f"hole{number}", size) for number, size in enumerate(holes)]
        assert refusal(b"".join(members) + tar_of(SAVED)).code is ErrorCode.TOO_LARGE


def test_names_are_bounded() -> None:
    """A link's target is bounded as a name is, and all names and targets together."""
    assert "over-long target" in refusal(tar_of(SAVED | {"link": "a" * 4097})).message
    count = NAMES_MAX_BYTES // 4000
    fault = refusal(tar_of(SAVED | {f"link{number}": "a" * 4000 for number in range(count)}))
    assert (fault.code, "targets of links" in fault.message) == (ErrorCode.TOO_LARGE, True)
    folders = "/".join(["f" * 15] * 250)
    fault = refusal(tar_of(SAVED | {f"{folders}/{number}": b"" for number in range(count + 1)}))
    assert (fault.code, "targets of links" in fault.message) == (ErrorCode.TOO_LARGE, True)


def test_a_configuration_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many images share it, of both sorts of archive; how often files may be named is bounded."""
    read: list[str] = []

    def noted(document: bytes, kind: type[ImageConfig], name: str) -> ImageConfig:
        read.append(name)
        return decoded(document, kind, name)

    monkeypatch.setattr(contents_module, "decoded", noted)
    config = config_of()
    manifests = [
        json.dumps({"schemaVersion": 2, "n": n, "config": described(config, OCI_CONFIG), "layers": []}).encode()
        for n in range(50)
    ]
    layout = blobs_of(config, *manifests) | tops_of(*(described(manifest, OCI_MANIFEST) for manifest in manifests))
    saved = json.dumps([{"Config": f"blobs/sha256/{hex_of(config)}"}] * 50).encode()
    assert check(tar_of(layout | {"manifest.json": saved})) == 50
    assert len(read) == 1
    many = b"[" + b",".join([b'{"Config":"c"}'] * (LOOKUPS_MAX // 2 + 1)) + b"]"
    fault = refusal(tar_of({"c": config, "manifest.json": many}))
    assert (fault.code, str(LOOKUPS_MAX) in fault.message) == (ErrorCode.TOO_LARGE, True)


@pytest.mark.parametrize(
    ("name", "document"),
    [
        ("index.json", b'{"manifests": [' + b'{"digest": "", "size": 0},' * 2 + b'{"digest": "", "size": 0}]}'),
        ("index.json", json.dumps({"manifests": [described(b"", OCI_MANIFEST) | {"urls": [""]}]}).encode()),
    ],
)
def test_short_strings_are_refused(name: str, document: bytes) -> None:
    """Where millions of them would fit into a document, strings that cannot be right end its reading."""
    fault = refusal(tar_of(LAYOUT | {name: document}))
    assert (fault.code, "of length >=" in fault.message) == (ErrorCode.INVALID, True)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), files=st.sampled_from([SAVED, LAYOUT]))
def test_changed_bytes_never_crash_it(data: st.DataObject, files: Files) -> None:
    """Whatever bytes are changed, the archive passes or is refused; nothing else is ever raised."""
    archive = bytearray(tar_of(files))
    for _ in range(data.draw(st.integers(1, 8))):
        archive[data.draw(st.integers(0, len(archive) - 1))] = data.draw(st.integers(0, 255))
    with suppress(Permanent):
        check(bytes(archive))


@settings(max_examples=200, deadline=None)
@given(
    document=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["Config", "Layers", "rootfs", "manifests", "digest", "size"]), inner)
        ),
    ),
    name=st.sampled_from(["manifest.json", CONFIG, "index.json", "oci-layout"]),
)
def test_any_json_in_any_place(document: object, name: str) -> None:
    """Documents of every other shape are refused."""
    mark = {"schemaVersion": 2, "it": document} if not isinstance(document, dict) else {"schemaVersion": 2} | document
    files = SAVED if name in SAVED else LAYOUT
    assert refusal(tar_of(files | {name: json.dumps(mark).encode()})).code is ErrorCode.INVALID


@pytest.fixture(scope="module")
def saved_busybox(engine: PrivateEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of several layers, two of them alike, as the session's engine saves it."""
    lines = [f"FROM {BUSYBOX}", "RUN echo 1 > /a", "RUN rm /a", "RUN echo 1 > /a", "LABEL x=y"]
    engine.docker("build", "--network=none", "-t", "imagejobd-test/saved:1", "-", input="\n".join(lines).encode())
    path = tmp_path_factory.mktemp("saved") / "saved.tar"
    engine.docker("save", "-o", str(path), "imagejobd-test/saved:1", BUSYBOX)
    engine.docker("rmi", "imagejobd-test/saved:1")
    return path


def test_what_docker_saves(saved_busybox: Path) -> None:
    """Two images that share layers, as the docker CLI saves them, pass."""
    assert check(saved_busybox.read_bytes()) == 2


@pytest.mark.parametrize("kind", ["docker-archive", "oci-archive"])
def test_what_skopeo_writes(engine: PrivateEngine, tmp_path: Path, kind: str) -> None:
    """skopeo's two archives of an image pass; with a byte of a layer changed they do not.

    Of an archive with one layer: skopeo 1.9 stumbles over the links that docker writes for layers that are alike.
    """
    saved, target = tmp_path / "saved.tar", tmp_path / "image.tar"
    engine.docker("save", "-o", str(saved), BUSYBOX)
    source = f"docker-archive:{saved}:docker.io/{BUSYBOX}"
    command = [str(program("skopeo")), "--insecure-policy", "copy", "--quiet", source, f"{kind}:{target}:x/y:1"]
    copied = subprocess.run(command, check=False, capture_output=True, timeout=60)
    assert copied.returncode == 0, copied.stderr.decode()
    data = bytearray(target.read_bytes())
    assert check(bytes(data)) == 1
    with tarfile.open(target) as archive:
        layer = max(archive, key=lambda member: member.size)
    data[layer.offset_data + layer.size // 2] ^= 1
    assert refusal(bytes(data)).code is ErrorCode.INVALID
