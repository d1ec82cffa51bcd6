"""Overhead: build → push → purge through the daemon, beside `docker build && docker push && docker rmi`."""

import random
from pathlib import Path
from statistics import median

from bench.figures import Bound, Figure, say
from bench.peers import Peers
from harness.base_image import BUSYBOX

ROUNDS = 5
FILES = 200
FILE_BYTES = 256 * 1024
# Steps of about one second in all, as a compiler's or an installer's would be.
DOCKERFILE = f"""FROM {BUSYBOX}
COPY . /src
RUN sleep 0.3 && find /src -type f | sort | xargs sha256sum > /checksums
RUN sleep 0.3 && mkdir /out && cp /src/file-00* /out
RUN sleep 0.3 && du -s /out
CMD ["cat", "/checksums"]
"""

# The daemon is sent a tar. BuildKit unpacks one that it is sent, and copies it once more before the first step; from a
# folder the client sends it single files. The second row shows what of the difference is the engine's own.
FROM_FOLDER, FROM_TAR = "docker build FOLDER", "docker build - < tar"

COST_BOUND = Bound("≤", 1.05)


def measure(*, quick: bool) -> list[Figure]:
    rounds, files = (1, 20) if quick else (ROUNDS, FILES)
    times: dict[str, list[float]] = {"imagejobd": [], FROM_FOLDER: [], FROM_TAR: []}
    with Peers.running() as peers:
        make_context(peers.context, files)
        runs = [peers.by_daemon, peers.by_docker, peers.by_docker_from_tar]
        for run in runs:  # all warm
            run()
        for number in range(rounds):
            turns = list(zip(times.values(), runs, strict=True))
            # Who goes first changes, so that a machine that gets slower or faster favours nobody.
            for taken, run in turns[number % len(turns) :] + turns[: number % len(turns)]:
                taken.append(run())
            say(f"round {number + 1}: " + "; ".join(f"{who} {taken[-1]:.2f} s" for who, taken in times.items()))
    cost, *peer_costs = (median(taken) for taken in times.values())
    return [
        Figure(f"overhead, {what}", f"{cost:.2f} s", f"docker {beside:.2f} s", cost / beside, COST_BOUND)
        for what, beside in zip((FROM_FOLDER, FROM_TAR), peer_costs, strict=True)
    ]


def make_context(folder: Path, files: int) -> None:
    """A context of which one half is as hard to compress as archives and the other as easy as sources."""
    dice = random.Random(1)
    (folder / "Dockerfile").write_text(DOCKERFILE)
    for number in range(files):
        hard = dice.randbytes(FILE_BYTES // 2)
        (folder / f"file-{number:04}").write_bytes(hard + hard.hex().encode()[: FILE_BYTES // 2])
