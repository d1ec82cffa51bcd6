"""What a push has sent, from what the engine says of its parts and what the registry has."""

import pytest

from imagejobd.jobs.shared.push import with_bytes
from imagejobd.model.job import Push

PUSH = Push(image=0, target=0, registry="r.example", repository="a/b", tags={"1": "pushed"})
SIZES = {"a" * 12: 1, "b" * 12: 20, "c" * 12: 300}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"a": "Pushed", "b": "Mounted from x/y", "c": "Layer already exists"}, (1, 20, 300, 321)),
        ({"a": "Pushed", "b": "Pushed", "c": "Already exists"}, (21, 0, 300, 321)),
        ({"b": "Layer already exists"}, (0, 0, 20, 20)),
        ({"a": "Pushed", "b": "Pushing"}, (None,) * 4),
        ({"a": "Pushed", "d": "Pushed"}, (None,) * 4),
        ({}, (None,) * 4),
    ],
    ids=["graph-driver", "containerd", "nothing-sent", "unknown-end", "unknown-part", "silent"],
)
def test_pushed_bytes(parts: dict[str, str], expected: tuple[int | None, ...]) -> None:
    """Sent is what was neither mounted nor there; where one part is in doubt nothing is claimed."""
    push = with_bytes(PUSH, {name * 12: status for name, status in parts.items()}, SIZES)
    assert (push.sent_bytes, push.mounted_bytes, push.skipped_bytes, push.total_bytes) == expected
