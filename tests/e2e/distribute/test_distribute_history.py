"""What people find of copies with the `sqlite3` shell."""

from harness.distribute_box import DistributeBox, registry_of, source, target
from harness.images import put_image
from harness.registry import Registry

COLUMNS = "source, endpoint, image, tags, sent_bytes, seconds, outcome, error"
COPIES = f"SELECT {COLUMNS} FROM copy_history WHERE uuid = ? ORDER BY image"
JOBS = "SELECT kind, state, image FROM job_history WHERE uuid = ?"


def test_copy_history(box: DistributeBox, origin: Registry, mirror: Registry, path: str) -> None:
    """Every copy has a line with what it took, or why it failed."""
    image = put_image(origin, path, "1", seed=path)
    uuid = box.distribute(source(origin, path), [target(mirror, image=f"{path}/there")])
    box.succeeded(uuid)
    with Registry(read_only=True) as closed:
        refused = box.distribute(source(origin, path), [target(closed)])
        box.failed(refused)
    ((*row, seconds, outcome, error),) = box.daemon.sqlite(COPIES, (uuid,))
    assert row == [f"{path}:1", mirror.host, f"{path}/there", '{"1":"copied"}', image.blobs_bytes]
    assert (seconds > 0, outcome, error) == (True, "copied", None)
    ((_, endpoint, _, tags, sent_bytes, seconds, outcome, error),) = box.daemon.sqlite(COPIES, (refused,))
    assert (endpoint, tags, sent_bytes, outcome) == (closed.host, '{"1":"wanted"}', 0, "failed")
    assert seconds >= 0
    assert "read-only" in error


def test_a_registry_is_one_however_it_is_written(
    box: DistributeBox, origin: Registry, mirror: Registry, path: str
) -> None:
    """The history has one name for it; the API gives each endpoint back as it was sent."""
    put_image(origin, path, "1", seed=path)
    endpoints = [mirror.host, f"http://{mirror.host}", f"http://{mirror.host}/v2/"]
    targets = [{"endpoint": text, "image": f"{path}/{number}"} for number, text in enumerate(endpoints)]
    uuid = box.distribute(source(origin, path), targets)
    result = box.succeeded(uuid)["result"]
    assert [target["endpoint"] for target in result["images"][0]["targets"]] == endpoints
    assert [row[1] for row in box.daemon.sqlite(COPIES, (uuid,))] == [mirror.host] * 3
    query = "SELECT kind, registry, repository, tag, outcome FROM push_history WHERE uuid = ? ORDER BY repository"
    places = [("distribute", mirror.host, f"{path}/{number}", "1", "copied") for number in range(3)]
    assert box.daemon.sqlite(query, (uuid,)) == places


def test_job_history(box: DistributeBox, origin: Registry, mirror: Registry, path: str) -> None:
    """A distribution is listed by what it copies: an image by tag or digest, a repository, the first of several."""
    image = put_image(origin, path, "1", seed=path)
    sources = {
        f"{path}:1": source(origin, path),
        f"{path}@{image.digest}": source(origin, path, image.digest),
        path: registry_of(origin, image=path, tags={"regex": ".*"}),
        f"{path}:2": registry_of(origin, images=[f"{path}:2", f"{path}:1"]),
    }
    put_image(origin, path, "2", seed=path)
    for shown, wanted in sources.items():
        uuid = box.distribute(wanted, [target(mirror)])
        box.succeeded(uuid)
        assert box.daemon.sqlite(JOBS, (uuid,)) == [("distribute", "succeeded", shown)]
