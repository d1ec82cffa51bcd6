"""Policy: a 500-line Dockerfile read and judged anew, by rules that look at everything, and printed for the engine."""

import time
from statistics import median

from bench.figures import Bound, Figure
from imagejobd.dockerfile.policy import Policy, PolicySettings

ROUNDS = 200
LINES = 500
BLOCK = """\
# what the application needs
ARG VERSION_{n}=1.{n}
ENV APP_{n}=/srv/app-{n} \\
    PATH=/srv/app-{n}/bin:$PATH
COPY --chown=1000:1000 src-{n} /srv/app-{n}
RUN --mount=type=cache,target=/var/cache/apt apt-get update && \\
    apt-get install --yes package-{n}=${{VERSION_{n}}} && \\
    rm -rf /var/lib/apt/lists
LABEL org.example.part-{n}="part {n}" org.example.version="$VERSION_{n}"
WORKDIR /srv/app-{n}
"""
STRICT = PolicySettings(
    instructions=("*", "!ONBUILD"),
    images=("registry.example/*",),
    require_digest=True,
    mounts=("cache", "bind"),
    flags=("*", "!RUN --security=*"),
    add_urls=("https://example.org/*",),
    build_args=("VERSION_*",),
)

TIME_BOUND = Bound("≤", 5.0, "ms")
PRINT_BOUND = Bound("≤", 8.0, "ms")


def measure(*, quick: bool) -> list[Figure]:
    text = dockerfile()
    lines = text.count("\n")
    times: list[float] = []
    print_times: list[float] = []
    for _ in range(20 if quick else ROUNDS):
        policy = Policy(STRICT)  # one that remembers nothing
        began = time.perf_counter()
        plan = policy.plan(text, build_args={"VERSION_1": "2"})
        judged = time.perf_counter()
        plan.printed({base.key: "imagejobd/job:base" for base in plan.images()})
        times.append((judged - began) * 1000)
        print_times.append((time.perf_counter() - judged) * 1000)
    took_ms, print_ms = median(times), median(print_times)
    return [
        Figure(f"policy, {lines} lines", f"{took_ms:.2f} ms", "", took_ms, TIME_BOUND),
        Figure(f"printed and checked, {lines} lines", f"{print_ms:.2f} ms", "", print_ms, PRINT_BOUND),
    ]


def dockerfile() -> str:
    """Two stages and all that a long Dockerfile is made of."""
    blocks = [BLOCK.format(n=number) for number in range(LINES // BLOCK.count("\n"))]
    base = f"FROM registry.example/base@sha256:{'0' * 64}"
    return "\n".join(
        [f"{base} AS build", "".join(blocks[::2]), base, "COPY --from=build /srv /srv", "".join(blocks[1::2])]
    )
