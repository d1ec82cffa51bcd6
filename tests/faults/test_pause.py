"""A pause is an order to the installation, not to the process: it survives `kill -9`, and so do the jobs behind it."""

from harness.box import Box
from harness.waiting import until

REASON = "the registry moves"


def test_a_pause_outlives_the_daemon() -> None:
    """Before and after a crash jobs of the paused kind are accepted, can be cancelled and wait, and say what for; the
    other kinds go on. Resumed, the daemon does what it has."""
    # Without targets there is nothing to do: such a job ends as soon as it starts.
    spec = {"source": {"endpoint": "http://127.0.0.1:1", "image": "a", "ref": "1"}, "targets": []}
    with Box() as box:
        box.succeeded(box.submit("distribute", spec))
        answer = box.call("POST", "/api/v2/queue/pause", {"kind": "distribute", "reason": REASON})
        assert answer.status == 200, answer.text
        first, cancelled = box.submit("distribute", spec), box.submit("distribute", spec)
        until(lambda: box.job(first)["waiting_for"] == f"paused: {REASON}", what="the job to say what it waits for")
        box.daemon.kill()
        box.daemon.start()
        second = box.submit("distribute", spec)
        for job in (first, cancelled, second):
            until(
                lambda job=job: box.job(job)["waiting_for"] == f"paused: {REASON}", what="the pause to be known again"
            )
            assert (box.job(job)["state"], box.job(job)["eta_seconds"]) == ("queued", None)
        assert box.cancel(cancelled) == 200
        kinds = box.call("GET", "/api/v2/queue").json["kinds"]
        assert (kinds["distribute"]["queued"], kinds["distribute"]["paused"]["reason"]) == (2, REASON)
        assert kinds["build"]["paused"] is None
        assert box.call("POST", "/api/v2/queue/resume", {"kind": "distribute"}).status == 200
        for job in (first, second):
            assert box.succeeded(job)["crashes"] == 0
        assert box.job(cancelled)["state"] == "cancelled"
        log = box.daemon.log_text()
    assert log.count("paused: no job is started") == 2
    assert "resumed: jobs are started again" in log
