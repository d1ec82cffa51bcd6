"""The number that a run is for: read from wherever an image may write it, whoever it runs as."""

from collections.abc import Iterator

import pytest

from harness.bodies import dockerfile
from harness.run_box import PERF, RunBox, launched, script, writes

USERS = {
    "root": (),
    "a name": ("USER nobody",),
    "a number that no file names": ("USER 12345",),
    "a user and a group": ("USER 65534:65534",),
}
NUMBERS = {
    "0": "0.000000",
    "-1.5e-3": "-0.001500",
    "12345678901234567890": "12345678901234567168.000000",
    "1e300": format(1e300, ".6f"),
}


@pytest.fixture(scope="module")
def jobs(box: RunBox) -> Iterator[dict[str, str]]:
    """A run for every user, and one for every number."""
    texts = {user: dockerfile(*lines, script(PERF)) for user, lines in USERS.items()}
    texts |= {number: dockerfile(script(writes(f'{{"perf": {number}}}'))) for number in NUMBERS}
    with launched(box, texts) as ids:
        yield ids


@pytest.mark.parametrize("user", USERS)
def test_perf_of_any_user(box: RunBox, jobs: dict[str, str], user: str) -> None:
    """Root or not, a USER can write its result to a /data that the image does not even have."""
    assert box.outcome(jobs[user]) == "Successful - Model performance : 0.500000"


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_of_any_size(box: RunBox, jobs: dict[str, str], number: str) -> None:
    """Any finite number is a performance, shown with six decimals."""
    assert box.outcome(jobs[number]) == f"Successful - Model performance : {NUMBERS[number]}"


def test_data_is_empty_at_the_start(box: RunBox) -> None:
    """A result that was baked into the image is no result of the run."""
    job = box.launch(dockerfile(f"RUN mkdir /data && {PERF}", script("ls -a /data", "true")))
    assert box.outcome(job).startswith("Failed - ")
    assert box.job(job)["error"]["code"] == "result_missing"


def test_perf_of_the_version_goes_before(box: RunBox) -> None:
    """`perf-<version>.json` is read, not `perf.json` beside it; the version is the job's id."""
    own = 'printf \'{"perf": 0.25, "version": "%s"}\' "$version" > /data/perf-$version.json'
    job = box.launch(dockerfile("ARG version", "ENV version=$version", script(PERF, own)))
    assert box.outcome(job) == "Successful - Model performance : 0.250000"
    assert box.metrics(job) == {"perf": 0.25, "version": job}


def test_a_bad_perf_of_the_version_is_not_passed_over(box: RunBox) -> None:
    """Where `perf-<version>.json` is no good, an older `perf.json` does not stand in for it."""
    own = "echo nonsense > /data/perf-$version.json"
    job = box.launch(dockerfile("ARG version", "ENV version=$version", script(PERF, own)))
    assert box.outcome(job).startswith("Failed - ")
    assert box.job(job)["error"]["code"] == "result_invalid"


def test_whole_object_is_kept(box: RunBox) -> None:
    """All that stands beside `perf` is kept as metrics, in the JSON status too."""
    written = '{"perf": 1, "loss": [0.5, null, true], "größe": {"a": "b"}}'
    job = box.launch(dockerfile(script(writes(written))))
    box.outcome(job)
    assert box.metrics(job) == {"perf": 1, "loss": [0.5, None, True], "größe": {"a": "b"}}
    status = box.call("GET", f"/status?id={job}", headers={"Accept": "application/json"}).json
    assert (status["id"], status["perf"], status["error"]) == (job, 1, None)
    assert status["metrics"] == box.metrics(job)


def test_both_streams_are_in_the_log(box: RunBox) -> None:
    """stdout and stderr of the container are in the job's log while it runs."""
    job = box.launch(dockerfile(script("echo to the one", "echo to the other >&2", "sleep 1.5", PERF)))
    box.prints(job, "to the one")
    box.prints(job, "to the other")
    assert box.status(job).text == f"Job {job} is Running"
    assert box.status(job).status == 202
    assert box.outcome(job).startswith("Successful")


def test_results_in_sql(box: RunBox) -> None:
    """`run_result` has the perf and the metrics of every successful run, and `job_history` all runs."""
    good = box.launch(dockerfile(script(writes('{"perf": 0.75, "n": 3}'))))
    bad = box.launch(dockerfile(script("exit 3")))
    box.outcome(good)
    box.outcome(bad)
    results = "select perf, metrics ->> '$.n' from run_result where uuid in (?, ?) and perf is not null"
    assert box.daemon.sqlite(results, (good, bad)) == [(0.75, 3)]
    history = (
        "select kind, tenant, state, error_code, seconds_working > 0 from job_history where uuid in (?, ?) order by id"
    )
    assert box.daemon.sqlite(history, (good, bad)) == [
        ("run", "local", "succeeded", None, 1),
        ("run", "local", "failed", "run_failed", 1),
    ]
    phases = "select phase from phase_history where uuid = ?"
    assert box.daemon.sqlite(phases, (good,)) == [("building",), ("running",), ("collecting",), ("purging",)]
