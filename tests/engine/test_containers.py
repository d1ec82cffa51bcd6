"""Containers that a build left behind, in a real engine."""

from datetime import UTC, datetime

from harness.base_image import BUSYBOX
from harness.engine import PrivateEngine
from imagejobd.engine.client import Engine
from imagejobd.engine.container import remove_container


async def test_a_running_container_goes_and_others_stay(client: Engine, engine: PrivateEngine) -> None:
    """One container is removed, though it runs; doing so again is no error."""
    began = datetime.now(UTC)
    running = engine.docker("run", "--detach", "--network=none", BUSYBOX, "sleep", "1000")
    other = engine.docker("create", "--network=none", BUSYBOX)
    await remove_container(client, running, created_after=began)
    assert engine.docker("ps", "--all", "--quiet", "--no-trunc") == other
    await remove_container(client, running, created_after=began)
    engine.docker("rm", other)


async def test_a_container_from_before_the_build_is_left_alone(client: Engine, engine: PrivateEngine) -> None:
    """A RUN step that prints the id of somebody's container does not have it removed."""
    victim = engine.docker("run", "--detach", "--network=none", BUSYBOX, "sleep", "1000")
    await remove_container(client, victim[:12], created_after=datetime.now(UTC))
    assert engine.docker("ps", "--quiet", "--no-trunc") == victim
    engine.docker("rm", "--force", victim)
