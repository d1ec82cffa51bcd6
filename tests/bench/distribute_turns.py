"""The daemon and skopeo in turns, round by round, and the daemon beside the faster way of running skopeo."""

from statistics import median

from bench.distribute_peers import Copy, Cost, run_on_new
from bench.figures import Bound, Figure, say
from bench.images import Image
from harness.registry import Registry

DAEMON, IN_TURN, AT_ONCE = "imagejobd", "skopeo in turn", "skopeo at once"


def in_turns(
    copies: dict[str, Copy], source: Registry, image: Image, *, targets: int, rounds: int
) -> dict[str, list[Cost]]:
    """The costs of each copy, round by round. Who goes first changes, so that a machine that slows favours nobody."""
    costs: dict[str, list[Cost]] = {who: [] for who in copies}
    order = list(copies)
    for number in range(rounds):
        for who in order[number % len(order) :] + order[: number % len(order)]:
            costs[who].append(run_on_new(copies[who], source, image, targets))
        seconds = (f"{who} {taken[-1].wall_s:.2f} s (CPU {taken[-1].cpu_s:.2f} s)" for who, taken in costs.items())
        say(f"{targets} targets, round {number + 1}: " + "; ".join(seconds))
    return costs


def beside_the_faster(what: str, costs: dict[str, list[Cost]], bound: Bound) -> Figure:
    """The daemon's seconds beside those of the faster of the two ways of running skopeo."""
    ours_s = wall_s(costs[DAEMON])
    best_s, best = min((wall_s(costs[who]), who) for who in (IN_TURN, AT_ONCE))
    return Figure(what, f"{ours_s:.2f} s", f"{best} {best_s:.2f} s", ours_s / best_s, bound)


def wall_s(costs: list[Cost]) -> float:
    """Seconds on the clock, the median of the rounds."""
    return median(cost.wall_s for cost in costs)


def cpu_s(costs: list[Cost]) -> float:
    """Seconds of the processors, the median of the rounds."""
    return median(cost.cpu_s for cost in costs)
