"""Promises of the context reader: what it writes, what it refuses, and that nothing else ever comes out of it."""

import bz2
import gzip
import io
import itertools
import lzma
import os
import subprocess
import tarfile
import time
import tracemalloc
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st
from image_tars import sparse_of

from imagejobd.archive import ContextBounds, Stopped, dockerfile_context, rewrite
from imagejobd.archive.inflate import STREAMS_MAX, Inflated
from imagejobd.archive.tar import RECORDS_PER_HEADER_MAX, Members
from imagejobd.model.errors import ErrorCode, Permanent

PACKS = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": zstd.compress}
DOCKERFILE = ("Dockerfile", b"FROM scratch\n")


def go_on() -> bool:
    return False


def member(name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def tar_of(*entries: tuple[str, bytes] | tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                archive.addfile(entry)
            else:
                archive.addfile(member(entry[0], size=len(entry[1])), io.BytesIO(entry[1]))
    return buffer.getvalue()


def bounds_of(*, max_bytes: int = 1 << 30, max_entries: int = 200_000, **others: int) -> ContextBounds:
    return ContextBounds(max_bytes=max_bytes, max_entries=max_entries, **others)


def rewritten(
    data: bytes, bounds: ContextBounds | None = None, dockerfile_path: str | None = None
) -> tuple[str, bytes]:
    """The text of the Dockerfile, and the new tar."""
    target = io.BytesIO()
    text = rewrite(io.BytesIO(data), target, bounds or bounds_of(), go_on, dockerfile_path)
    return text, target.getvalue()


def members_of(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        infos = archive.getmembers()
    assert len({info.name for info in infos}) == len(infos)
    return {info.name: info for info in infos}


def refusal(data: bytes, bounds: ContextBounds | None = None, dockerfile_path: str | None = None) -> Permanent:
    with pytest.raises(Permanent) as caught:
        rewritten(data, bounds, dockerfile_path)
    return caught.value


@pytest.mark.parametrize("pack", [bytes, *PACKS.values()], ids=["plain", *PACKS])
def test_every_compression_gives_the_same_plain_tar(pack):
    """Whatever a tar is compressed with, the same plain tar comes out."""
    data = tar_of(DOCKERFILE, ("src/main.c", b"int main;" * 1000))
    assert rewritten(pack(data)) == rewritten(data)


def test_concatenated_gzip_streams_are_one_tar():
    """A gzip file of several members (as pigz and cat make them) is read to its end."""
    data = tar_of(DOCKERFILE, ("big", os.urandom(5000)))
    packed = gzip.compress(data[:2000]) + gzip.compress(data[2000:])
    assert rewritten(packed)[1] == rewritten(data)[1]


@pytest.mark.parametrize("tail", [bytes(512), b"garbage"])
def test_padding_after_gzip_data_is_ignored(tail):
    """What follows the compressed stream and is none itself is padding."""
    data = tar_of(DOCKERFILE)
    assert rewritten(gzip.compress(data) + tail)[1] == rewritten(data)[1]


def test_output_has_no_owner_names_or_attributes_and_is_stable():
    """Owners, names and extended attributes are dropped; mode and time stay; twice the same is written."""
    info = member("bin/tool", size=3)
    info.mode, info.mtime, info.uid, info.gid, info.uname, info.gname = 0o4755, 1_700_000_000, 1000, 1000, "joe", "joe"
    info.pax_headers = {"SCHILY.xattr.user.x": "y", "comment": "z"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(info, io.BytesIO(b"abc"))
        archive.addfile(member("Dockerfile", size=7), io.BytesIO(b"FROM a\n"))
    _, out = rewritten(buffer.getvalue())
    found = members_of(out)["bin/tool"]
    assert (found.mode, found.mtime, found.uid, found.gid) == (0o4755, 1_700_000_000, 0, 0)
    assert (found.uname, found.gname, found.pax_headers) == ("", "", {})
    assert rewritten(out)[1] == out


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names_survive(form):
    """Names and link targets that need extended headers come out as they went in."""
    name, target = "ü" * 60 + "/" + "n" * 120, "t" * 300
    data = tar_of(DOCKERFILE, (name, b"x"), member("link", tarfile.SYMTYPE, link=target), form=form)
    found = members_of(rewritten(data)[1])
    assert found[name].size == 1
    assert found["link"].linkname == target


def test_symbolic_links_keep_their_targets():
    """An absolute or climbing target is legitimate: the engine resolves it inside the context."""
    data = tar_of(
        DOCKERFILE, member("a", tarfile.SYMTYPE, link="/etc/passwd"), member("b", tarfile.SYMTYPE, link="../x")
    )
    found = members_of(rewritten(data)[1])
    assert (found["a"].linkname, found["b"].linkname) == ("/etc/passwd", "../x")


def test_repeated_directories_and_dot_names_are_merged():
    """`./a/`, `a` and `a//` are one directory, written once."""
    data = tar_of(
        member("./", tarfile.DIRTYPE), member("./a", tarfile.DIRTYPE), member("a//", tarfile.DIRTYPE), DOCKERFILE
    )
    assert list(members_of(rewritten(data)[1])) == ["a", "Dockerfile"]


@pytest.mark.parametrize("name", ["a", "./"])
def test_repeated_directories_count(name):
    """A tar of nothing but the same folder meets the bound on entries too."""
    data = tar_of(DOCKERFILE, *[member(name, tarfile.DIRTYPE)] * 11)
    rewritten(data, bounds_of(max_entries=12))
    assert "too many entries" in refusal(data, bounds_of(max_entries=10)).message


def test_hard_links_to_earlier_files_are_kept():
    """A hard link to a regular member before it stays one."""
    found = members_of(rewritten(tar_of(DOCKERFILE, ("a", b"x"), member("./b", tarfile.LNKTYPE, link="./a")))[1])
    assert found["b"].islnk()
    assert found["b"].linkname == "a"


def test_git_archive_headers_are_accepted():
    """The global PAX comment that `git archive` writes does no harm."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", pax_headers={"comment": "0123abcd"}) as archive:
        archive.addfile(member("Dockerfile"))
    assert list(members_of(rewritten(buffer.getvalue())[1])) == ["Dockerfile"]


@pytest.mark.parametrize("options", [["--format=gnu"], ["--format=posix"]])
def test_sparse_files_come_out_whole(tmp_path: Path, options: list[str]):
    """Sparse members of GNU tar, in both of its forms, become plain files with the same bytes."""
    (tmp_path / "Dockerfile").write_bytes(b"FROM a\n")
    with (tmp_path / "holes").open("wb") as file:
        for index in range(40):
            file.seek(index * 70_000 + 3)
            file.write(b"data %d" % index)
        file.truncate(3_000_000)
    packed = subprocess.run(["tar", "-C", tmp_path, *options, "-Scf", "-", "."], capture_output=True, check=True).stdout
    assert len(packed) < 1_000_000
    out = rewritten(packed)[1]
    with tarfile.open(fileobj=io.BytesIO(out)) as archive:
        holes = archive.extractfile("holes")
        assert holes is not None
        assert holes.read() == (tmp_path / "holes").read_bytes()
    assert refusal(packed, bounds_of(max_bytes=2_900_000)).code == ErrorCode.TOO_LARGE


def test_holes_stop_when_told():
    """Unrolling a hole ends when the caller says so, although nothing is read meanwhile."""
    asked = itertools.count(1)
    with pytest.raises(Stopped):
        rewrite(
            io.BytesIO(sparse_of("hole", 1 << 29) + tar_of(DOCKERFILE)),
            io.BytesIO(),
            bounds_of(),
            lambda: next(asked) > 8,
        )


def test_lower_case_dockerfile():
    """`dockerfile` serves where there is no `Dockerfile`."""
    text, out = rewritten(tar_of(("dockerfile", b"FROM b\n")))
    assert text == "FROM b\n"
    assert set(members_of(out)) == {"dockerfile"}


def test_upper_case_dockerfile_goes_first():
    """With both, `Dockerfile` counts, in whichever order they come."""
    assert rewritten(tar_of(("dockerfile", b"FROM b\n"), DOCKERFILE))[0] == "FROM scratch\n"


PLACED = ("docker/app.Dockerfile", b"FROM placed\n")


@pytest.mark.parametrize("path", ["docker/app.Dockerfile", "./docker//app.Dockerfile", "docker/./app.Dockerfile"])
@pytest.mark.parametrize("entries", [[PLACED], [DOCKERFILE, PLACED], [("./docker/app.Dockerfile", PLACED[1])]])
def test_the_dockerfile_at_a_path(path, entries):
    """The one at the path counts, whatever else is at the top, and stays where it is."""
    text, out = rewritten(tar_of(*entries), dockerfile_path=path)
    assert text == "FROM placed\n"
    assert "docker/app.Dockerfile" in members_of(out)


def test_the_dockerfile_at_a_long_path():
    """Names that need PAX or GNU headers are read like any other."""
    name = "ü" * 100 + "/" + "d" * 200
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        assert rewritten(tar_of((name, b"FROM a\n"), form=form), dockerfile_path=name)[0] == "FROM a\n"


BAD_PATHS = {
    "absent": ("docker/other", [PLACED], "no 'docker/other'"),
    "the usual one is no stand-in": ("other", [DOCKERFILE], "no 'other'"),
    "another case": ("Docker/app.Dockerfile", [PLACED], "case counts"),
    "parent": ("../Dockerfile", [DOCKERFILE], "leads out"),
    "parent within": ("docker/../Dockerfile", [DOCKERFILE], "leads out"),
    "absolute": ("/Dockerfile", [DOCKERFILE], "leads out"),
    "a slash behind": ("Dockerfile/", [DOCKERFILE], "names a folder"),
    "a dot behind": ("Dockerfile/.", [DOCKERFILE], "names a folder"),
    "the root": (".", [DOCKERFILE], "names a folder"),
    "NUL": ("Dockerfile\0", [DOCKERFILE], "NUL"),
    "too long": ("d/" * 3000 + "d", [DOCKERFILE], "longer than 4096"),
    "a folder": ("docker", [PLACED], "is a directory"),
    "a link": ("link", [PLACED, member("link", tarfile.SYMTYPE, link="docker/app.Dockerfile")], "a symbolic link"),
    "below a link": (
        "link/app.Dockerfile",
        [PLACED, member("link", tarfile.SYMTYPE, link="docker")],
        "lies below 'link', which is a symbolic link",
    ),
    "below a file": ("Dockerfile/x", [DOCKERFILE], "lies below 'Dockerfile', which is a file"),
    "a hard link": ("link", [PLACED, member("link", tarfile.LNKTYPE, link="docker/app.Dockerfile")], "a hard link"),
    "twice": (PLACED[0], [PLACED, ("docker//app.Dockerfile", b"FROM evil\n")], "twice"),
    "a folder and a link over it": (
        PLACED[0],
        [PLACED, member("docker", tarfile.SYMTYPE, link="evil"), ("evil/app.Dockerfile", b"FROM evil\n")],
        "twice",
    ),
    "no text": ("d", [("d", b"FROM \xff")], "not UTF-8 text (line 1)"),
}


@pytest.mark.parametrize(("path", "entries", "reason"), BAD_PATHS.values(), ids=BAD_PATHS.keys())
def test_paths_that_two_readers_could_read_differently(path, entries, reason):
    """Whatever is not plainly one regular file of the tar is refused, with the reason."""
    fault = refusal(tar_of(*entries), dockerfile_path=path)
    assert fault.code == ErrorCode.INVALID
    assert reason in fault.message


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ((".dockerignore", b"a\n[\n"), "'.dockerignore', line 2"),
        (("Dockerfile.dockerignore", b"["), "'Dockerfile.dockerignore', line 1"),
        (member(".dockerignore", tarfile.SYMTYPE, link="x"), "'.dockerignore' is a symbolic link"),
        (member(".dockerignore", tarfile.DIRTYPE), "'.dockerignore' is a directory"),
        (member(".dockerignore", tarfile.LNKTYPE, link="Dockerfile"), "'.dockerignore' is a hard link"),
        ((".dockerignore", bytes(1 << 21)), "'.dockerignore' is larger than 1048576 bytes"),
    ],
)
def test_an_ignore_file_that_cannot_be_read_is_refused(entry, reason):
    """As `docker build` refuses it, with the line; and one that readers could take for another."""
    assert reason in refusal(tar_of(DOCKERFILE, entry)).message


def test_comparing_with_an_ignore_file_has_a_bound():
    """Many patterns for many files would take minutes."""
    files = [(f"f{number}", b"") for number in range(11_000)]
    fault = refusal(tar_of(DOCKERFILE, (".dockerignore", b"*a*b*\n" * 1900), *files))
    assert fault.code == ErrorCode.TOO_LARGE
    assert "to compare" in fault.message


def test_byte_order_mark_is_not_part_of_the_text():
    """A UTF-8 byte order mark is tolerated and not passed on."""
    assert rewritten(tar_of(("Dockerfile", b"\xef\xbb\xbfFROM a\n")))[0] == "FROM a\n"


def test_dockerfile_context_reads_back():
    """The tar of a lone Dockerfile passes its own check unchanged."""
    packed = dockerfile_context("FROM ä\n")
    assert rewritten(packed) == ("FROM ä\n", packed)


BAD_TREES = {
    "climbs": ([("a/../../b", b"")], "leads out"),
    "absolute": ([("/etc/passwd", b"")], "absolute"),
    "device": ([member("null", tarfile.CHRTYPE)], "character device"),
    "block": ([member("sda", tarfile.BLKTYPE)], "block device"),
    "fifo": ([member("pipe", tarfile.FIFOTYPE)], "FIFO"),
    "unknown": ([member("odd", b"Q")], "unknown type"),
    "twice": ([("a", b"1"), ("./a", b"2")], "twice"),
    "dockerfile twice": ([DOCKERFILE], "twice"),
    "file and directory": ([("a", b""), member("a", tarfile.DIRTYPE)], "twice"),
    "directory and file": ([member("a", tarfile.DIRTYPE), ("a", b"")], "twice"),
    "below a file": ([("a", b""), ("a/b", b"")], "lies below 'a', which is a file"),
    "below a link": (
        [member("a", tarfile.SYMTYPE, link="/"), ("a/b", b"")],
        "lies below 'a', which is a symbolic link",
    ),
    "link over a folder": ([("a/b", b""), member("a", tarfile.SYMTYPE, link="x")], "twice"),
    "hard link ahead": ([member("b", tarfile.LNKTYPE, link="a"), ("a", b"")], "no file before it"),
    "hard link out": ([member("b", tarfile.LNKTYPE, link="../a")], "leads out"),
    "hard link to link": (
        [member("a", tarfile.SYMTYPE, link="x"), member("b", tarfile.LNKTYPE, link="a")],
        "no file before",
    ),
    "hard link to folder": (
        [member("a", tarfile.DIRTYPE), member("b", tarfile.LNKTYPE, link="a")],
        "no file before it",
    ),
    "empty target": ([member("b", tarfile.SYMTYPE)], "empty"),
    "root is a file": ([(".", b"")], "root of the tar"),
}


@pytest.mark.parametrize(("entries", "reason"), BAD_TREES.values(), ids=BAD_TREES.keys())
def test_bad_trees_are_refused_with_the_reason(entries, reason):
    """Each way of making a harmful tree is refused, and the message says which member and why."""
    fault = refusal(tar_of(DOCKERFILE, *entries))
    assert fault.code == ErrorCode.INVALID
    assert reason in fault.message


@pytest.mark.parametrize(
    ("bounds", "entry"),
    [
        (bounds_of(max_entries=1), ("x", b"")),
        (bounds_of(max_entries=3), ("a/b/c", b"")),
        (bounds_of(max_bytes=4096), ("x", bytes(8192))),
        (bounds_of(max_name_bytes=20), ("n" * 21, b"")),
        (bounds_of(), ("n" * 256, b"")),
        (bounds_of(), ("a/" * 300 + "b", b"")),
        (bounds_of(max_dockerfile_bytes=12), ("x", b"")),
    ],
)
def test_every_bound_is_kept(bounds, entry):
    """Bytes, entries (implied folders too), names, depth and the Dockerfile's size have their limits."""
    fault = refusal(tar_of(DOCKERFILE, entry), bounds)
    assert fault.code == ErrorCode.TOO_LARGE
    assert "limit" in fault.message


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (member("Dockerfile", tarfile.SYMTYPE, link="real"), "symbolic link"),
        (member("Dockerfile", tarfile.DIRTYPE), "directory"),
        (member("Dockerfile", tarfile.LNKTYPE, link="other"), "hard link"),
        (("Dockerfile", "FROM ä".encode("latin-1")), "not UTF-8 text (line 1)"),
        (("sub/Dockerfile", b""), "no 'Dockerfile' or 'dockerfile' at its top level"),
    ],
)
def test_dockerfile_must_be_a_plain_text_file(entry, reason):
    """A Dockerfile that is missing, not a file, or not text is refused."""
    assert reason in refusal(tar_of(("other", b""), entry)).message


@pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)
def test_decompression_bomb_is_refused_early(pack):
    """A bomb stops at the bound, whatever it would unpack to, and takes no memory for it."""
    bomb = pack(tar_of(DOCKERFILE, ("zeros", bytes(64 << 20))))
    tracemalloc.start()
    fault = refusal(bomb, bounds_of(max_bytes=8 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert fault.code == ErrorCode.TOO_LARGE
    assert peak < 12 << 20


def test_bomb_behind_the_end_of_the_archive_counts_too():
    """Data after the end of the tar is read for its checksum, and counts."""
    packed = gzip.compress(tar_of(DOCKERFILE) + bytes(32 << 20))
    assert refusal(packed, bounds_of(max_bytes=1 << 20)).code == ErrorCode.TOO_LARGE


def test_xz_that_wants_too_much_memory_is_refused():
    """The dictionary size in an xz header is bounded."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 256 << 20}]
    packed = lzma.compress(tar_of(DOCKERFILE), filters=filters)
    fault = refusal(packed)
    assert fault.code == ErrorCode.TOO_LARGE
    assert "memory" in fault.message


def test_huge_extended_headers_are_not_read():
    """A PAX header or GNU name that claims a gigabyte is refused before it is read."""
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        header = member("x", kind, size=1 << 30).tobuf()
        assert refusal(header + bytes(4096)).code == ErrorCode.TOO_LARGE


def test_chains_of_headers_are_bounded():
    """Thousands of extended headers before one member are refused, not followed by recursion."""
    name = member("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=2).tobuf() + b"a\0" + bytes(510)
    assert "headers for one member" in refusal(name * 5000).message


def test_zstd_that_wants_too_much_memory_is_refused():
    """The window in a zstd frame's header is bounded."""
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 28})
    data = compressor.compress(tar_of(DOCKERFILE), mode=zstd.ZstdCompressor.FLUSH_BLOCK) + compressor.flush()
    fault = refusal(data)
    assert fault.code == ErrorCode.TOO_LARGE
    assert "--long=27" in fault.message


def test_skippable_frames_of_zstd_are_skipped():
    """pzstd puts a skippable frame before each frame; zstd:chunked one behind them all."""
    data = tar_of(DOCKERFILE, ("noise", os.urandom(5000)))
    skippable = b"\x50\x2a\x4d\x18\4\0\0\0note"
    packed = skippable + zstd.compress(data[:3000]) + skippable + zstd.compress(data[3000:]) + skippable
    assert rewritten(packed)[1] == rewritten(data)[1]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"FROM busybox\nRUN true\n", "a Dockerfile"),
        (b"PK\x03\x04" + bytes(600), "a zip archive"),
        (b"<!DOCTYPE html><html>" + b" " * 600, "a web page"),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 600, "zstd data is damaged"),
        (zstd.compress(tar_of(DOCKERFILE))[:-3], "zstd data is cut short"),
        (gzip.compress(b"FROM busybox\n", mtime=0), "inside the gzip data: it looks like a Dockerfile"),
        (b"\x1f\x8b broken", "gzip data is damaged"),
        (gzip.compress(tar_of(DOCKERFILE), mtime=0)[:-30], "cut short"),
        (lzma.compress(tar_of(DOCKERFILE))[:-30], "cut short"),
        (tar_of(("big", bytes(5000)), DOCKERFILE)[:3000], "cut short within 'big'"),
        (tar_of(("big", bytes(5000)))[:6000], "cut short after 'big'"),
        (tar_of(DOCKERFILE)[:1024] + b"x" * 512, "wrong checksum"),
        (tar_of(DOCKERFILE)[:1024] + bytes(512) + tar_of(DOCKERFILE)[:512], "empty block"),
    ],
)
def test_what_is_no_tar_is_called_by_its_name(data, reason):
    """Bytes that are no tar, or only half of one, are refused with what they look like."""
    fault = refusal(data)
    assert fault.code == ErrorCode.INVALID
    assert reason in fault.message


def test_corrupt_checksum_of_compressed_data_is_noticed():
    """Data whose gzip checksum is wrong is refused although the tar inside reads well."""
    packed = bytearray(gzip.compress(tar_of(DOCKERFILE)))
    packed[-6] ^= 0xFF
    assert "damaged" in refusal(bytes(packed)).message


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\x80" + b"\xff" * 11, b"-1\0".ljust(12), b"9" * 11 + b"\0"])
def test_impossible_sizes_are_refused(size):
    """Negative, absurd and unreadable numbers in a header are damage."""
    header = bytearray(member("a").tobuf())
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert refusal(bytes(header) + bytes(1024)).code == ErrorCode.INVALID


@pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)
def test_empty_compressed_streams_are_bounded(pack):
    """Streams that unpack to nothing meet no bound on bytes, so they are counted, and each costs little."""
    streams = pack(b"") * (STREAMS_MAX + 1)
    asked: list[bool] = []

    def stop() -> bool:
        asked.append(False)
        return False

    started = time.process_time()
    with pytest.raises(Permanent, match="streams") as caught:
        rewrite(io.BytesIO(streams), io.BytesIO(), bounds_of(), stop)
    assert caught.value.code == ErrorCode.TOO_LARGE
    assert len(asked) > STREAMS_MAX
    # Far above what it takes, far below what copying the rest of each mebibyte for every stream would.
    assert time.process_time() - started < 30


@pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)
@pytest.mark.parametrize("step", [1, 700, 40_000])
def test_many_streams_are_one_tar(pack, step: int):
    """Streams of every size are joined without loss, wherever they meet the pieces that are read."""
    data = tar_of(DOCKERFILE, ("noise", os.urandom(60_000 if step > 1 else 200)), ("zeros", bytes(90_000)))
    keep = len(data) if step > 1 else 3_000
    packed = b"".join(pack(data[at : at + step]) for at in range(0, keep, step)) + pack(data[keep:])
    assert rewritten(packed) == rewritten(data)


def test_pax_headers_of_many_records_are_refused():
    """Reading a record takes longer than packing it, so their number is bounded; what nobody needs is not kept."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = member("a")
        info.pax_headers = {f"SCHILY.xattr.user.{index}": "x" for index in range(RECORDS_PER_HEADER_MAX + 1)}
        archive.addfile(info)
    fault = refusal(buffer.getvalue())
    assert (fault.code, "records" in fault.message) == (ErrorCode.TOO_LARGE, True)


def test_only_records_that_matter_are_kept():
    """Extended attributes are read over, not held."""
    info = member("n" * 150)
    info.pax_headers = {"SCHILY.xattr.user.x": "y" * 9000, "comment": "z"}
    source = io.BytesIO(info.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    [found] = Members(Inflated(source, max_bytes=1 << 20, stop=go_on))
    assert set(found.pax) == {b"path"}


def test_stop_ends_it():
    """Reading ends when the caller says so."""
    with pytest.raises(Stopped):
        rewrite(io.BytesIO(tar_of(DOCKERFILE)), io.BytesIO(), bounds_of(), lambda: True)


def test_disk_errors_are_not_disguised():
    """An error of the disk under the target is no fault of the tar."""
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError):  # noqa: PTH123 - a device
        rewrite(io.BytesIO(tar_of(DOCKERFILE)), full, bounds_of(), go_on)


SEED = tar_of(
    DOCKERFILE,
    ("ü" * 60, b"data" * 200),
    member("dir", tarfile.DIRTYPE),
    member("dir/link", tarfile.SYMTYPE, link="x" * 120),
    member("hard", tarfile.LNKTYPE, link="Dockerfile"),
) + tar_of(member("n" * 150, tarfile.GNUTYPE_SPARSE), form=tarfile.GNU_FORMAT)


@settings(max_examples=400, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, len(SEED) - 1), st.binary(min_size=1, max_size=12)), max_size=8),
    keep=st.integers(0, len(SEED)),
    mend=st.booleans(),
    pack=st.sampled_from([bytes, *PACKS.values()]),
)
def test_nothing_but_permanent_comes_out_of_damaged_tars(edits, keep, mend, pack):
    """Any damage to a tar, with checksums mended or not, ends in a result that reads back or in `Permanent`."""
    data = bytearray(SEED)
    for at, patch in edits:
        data[at : at + len(patch)] = patch
    for at in range(0, len(data) - 511, 512) if mend else ():
        data[at + 148 : at + 156] = b" " * 8
        data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    try:
        _, out = rewritten(pack(bytes(data[:keep])), bounds_of(max_bytes=1 << 20))
    except Permanent:
        return
    assert rewritten(out)[1] == out


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=3000), st.sampled_from([b"", b"\x1f\x8b\x08\x00", b"BZh9", b"\xfd7zXZ\0"]))
def test_nothing_but_permanent_comes_out_of_noise(noise, magic):
    """Random bytes behind any magic are refused, never crashed on."""
    refusal(magic + noise)
