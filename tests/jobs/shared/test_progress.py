"""How much of a build is done, told by the names of its steps."""

import pytest

from imagejobd.engine.stream import Step
from imagejobd.jobs.shared.progress import StepCount, percent


def counted(*steps: Step) -> dict[str, object]:
    """The progress after these steps."""
    count = StepCount()
    progress: dict[str, object] = {}
    for step in steps:
        progress |= count.count(step)
    return progress


def test_steps_are_those_of_the_dockerfile() -> None:
    """What the builder does besides is named and not counted; numbers in what a step runs are nobody's."""
    progress = counted(
        Step(1, "[internal] load build definition from Dockerfile", "started"),
        Step(1, "[internal] load build definition from Dockerfile", "done"),
        Step(2, "[1/4] FROM docker.io/library/busybox", "started"),
        Step(2, "[1/4] FROM docker.io/library/busybox", "cached"),
        Step(3, "[2/4] RUN echo [3/99] x", "started"),
        Step(4, "exporting [3/4] to image", "started"),
    )
    assert progress == {"step": 2, "steps": 4, "percent": 25, "step_name": "exporting [3/4] to image"}


def test_stages_side_by_side() -> None:
    """Each stage has its own numbers; a stage that shows later makes the whole larger and takes nothing back."""
    begun = [
        Step(1, "[tools 1/2] FROM a", "started"),
        Step(1, "[tools 1/2] FROM a", "done"),
        Step(2, "[tools 2/2] RUN make", "started"),
    ]
    assert counted(*begun) == {"step": 2, "steps": 2, "percent": 50, "step_name": "[tools 2/2] RUN make"}
    begun += [Step(3, "[linux/arm64 stage-1 1/4] FROM b", "started")]
    assert counted(*begun)["percent"] == 50
    ended = [
        *begun,
        Step(2, "[tools 2/2] RUN make", "done"),
        Step(3, "[linux/arm64 stage-1 1/4] FROM b", "done"),
        Step(4, "[linux/arm64 stage-1 2/4] COPY", "failed"),
    ]
    assert counted(*ended) == {
        "step": 4,
        "steps": 6,
        "percent": 50,
        "step_name": "[linux/arm64 stage-1 1/4] FROM b",
    }


@pytest.mark.parametrize(
    ("done", "total", "wanted"), [(0, 10, 0), (1, 3, 33), (10, 10, 100), (20, 10, 100), (5, None, None), (5, 0, None)]
)
def test_a_percentage_is_a_whole_number_or_unknown(done: int, total: int | None, wanted: int | None) -> None:
    """From 0 to 100, also where more came than was announced."""
    assert percent(done, total) == wanted
