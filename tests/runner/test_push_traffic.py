"""What pushes moved is added to the bytes of their registries, once for each try."""

from msgspec.structs import replace
from runner_bench import Bench

from imagejobd.model.job import Push
from imagejobd.model.traffic import Bytes, Traffic
from imagejobd.runner.context import AttemptContext
from imagejobd.store.protocol import Capacity

PUSH = Push(image=0, target=0, registry="r.example", repository="a", sent_bytes=10, mounted_bytes=20, skipped_bytes=30)


async def attempt(bench: Bench, traffic: Traffic) -> AttemptContext:
    await bench.enqueue()
    (claim,) = await bench.store.claim("w", Capacity({"noop": 1}, 9))
    return AttemptContext(bench.store, claim, log_max_bytes=1000, traffic=traffic)


async def test_a_push_counts_when_it_has_ended(bench: Bench) -> None:
    """With what was sent, mounted and skipped; where nobody tells the bytes, none."""
    traffic = Traffic()
    context = await attempt(bench, traffic)
    await context.record_pushes([PUSH, Push(image=0, target=1, registry="quiet.example", repository="a")])
    assert traffic.registries["r.example"] == Bytes(sent=10, mounted=20, skipped=30)
    assert "quiet.example" not in traffic.registries


async def test_what_was_counted_is_not_counted_again(bench: Bench) -> None:
    """A row that is written again counts only if it was tried again, in this attempt or since an earlier one."""
    traffic = Traffic()
    context = await attempt(bench, traffic)
    await context.record_pushes([PUSH])
    await context.record_pushes([replace(PUSH, error="left to the next attempt")])
    assert traffic.registries["r.example"].sent == 10
    later = AttemptContext(bench.store, context._claim, log_max_bytes=1000, traffic=traffic)
    await later.pushes()
    await later.record_pushes([replace(PUSH, error="left again")])
    assert traffic.registries["r.example"].sent == 10
    await later.record_pushes([replace(PUSH, tries=2, sent_bytes=1)])
    assert traffic.registries["r.example"].sent == 11
