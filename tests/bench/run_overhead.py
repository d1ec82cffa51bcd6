"""Running: a run job through the daemon, beside `docker build && docker run && docker rm && docker rmi`.

Cold each time: no step is cached. Both end when the answer is known and the engine holds nothing of it any more.
"""

import json
from statistics import median

from bench.figures import Bound, Figure, say
from bench.peers import Peers
from harness.base_image import BUSYBOX
from harness.services import program

ROUNDS = 5
# A step and a run of half a second each, and a number at the end, as a small test of a model would give.
DOCKERFILE = f"""FROM {BUSYBOX}
ARG version
ENV version=$version
RUN sleep 0.5 && seq 1000 > /numbers
CMD sleep 0.5 && echo '{{"perf": 0.99, "lines": 1000}}' > /data/perf.json
"""

COST_BOUND = Bound("≤", 1.1)


def measure(*, quick: bool) -> list[Figure]:
    times: dict[str, list[float]] = {"imagejobd": [], "docker": []}
    with Peers.running() as peers:
        (peers.context / "Dockerfile").write_text(DOCKERFILE)
        runs = [by_daemon, by_docker]
        for run in runs:  # all warm
            run(peers)
        for number in range(1 if quick else ROUNDS):
            turns = list(zip(times.values(), runs, strict=True))
            for taken, run in turns[number % 2 :] + turns[: number % 2]:
                taken.append(run(peers))
            say(f"round {number + 1}: " + "; ".join(f"{who} {taken[-1]:.2f} s" for who, taken in times.items()))
    cost, docker_cost = (median(taken) for taken in times.values())
    return [Figure("run, overhead", f"{cost:.2f} s", f"docker {docker_cost:.2f} s", cost / docker_cost, COST_BOUND)]


def by_docker(peers: Peers) -> float:
    """Seconds of the docker client's four commands; the container's one writable place is a volume at /data."""
    reference = peers.fresh()
    docker = program("docker")
    return peers.timed(
        f"{docker} build --progress=plain --network=none --build-arg version=1 -t {reference} {peers.context} && "
        f"{docker} run --network=none --name bench-run -v /data {reference} && {docker} rm -v bench-run && "
        f"{docker} rmi {reference}"
    )


def by_daemon(peers: Peers) -> float:
    """Seconds from the submission to the end of the job."""
    peers.fresh()
    url, in_json = peers.daemon.url, "-H 'Accept: application/json'"
    submit = f"curl -fsS {in_json} {url}/run -F 'file=<{peers.context}/Dockerfile'"
    took = peers.timed(
        f"job=$({submit} | cut -d'\"' -f4) && curl -fsSN {url}/api/v2/jobs/$job/log?follow=1 && "
        f"curl -fsS {in_json} {url}/status?id=$job"
    )
    answer = json.loads(peers.output().splitlines()[-1])
    if answer["perf"] != 0.99:
        raise RuntimeError(f"the job ended otherwise: {answer}")
    return took
