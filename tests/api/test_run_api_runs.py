"""The run API end to end on a real engine: what is measured, what a client is told, and that nothing stays."""

import shutil
import subprocess

from calls import curl, until
from runs import FROM, LAUNCHED, PERF, launch, log_of, said

from harness.daemon import Daemon
from harness.engine import PrivateEngine
from harness.holdings import holdings_of
from harness.services import program, require


def test_the_documents_own_line(daemon: Daemon, engine: PrivateEngine) -> None:
    """The curl line of the document, with its boundary beside curl's own, launches a job that a client can follow."""
    dockerfile = f"{FROM}RUN sleep 1\nCMD sleep 1 && echo '{{\"perf\": 0.99}}' > /data/perf.json"
    done = subprocess.run(
        [
            str(program("curl")),
            *("--silent", "--show-error", "--request", "POST"),
            *("--url", f"{daemon.url}/run"),
            *("--header", "Content-Type: multipart/form-data; boundary=---011000010111000001101001"),
            *("--form", f"file={dockerfile}"),
        ],
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout.startswith(LAUNCHED)
    job = done.stdout.removeprefix(LAUNCHED)
    seen: list[tuple[int, str]] = []

    def look() -> int:
        answer = curl(daemon, f"/status?id={job}")
        if (answer.status, answer.text) not in seen[-1:]:
            seen.append((answer.status, answer.text))
        return answer.status

    until(look, lambda status: status == 200)
    assert seen[-1] == (200, f"Job {job} was Successful - Model performance : 0.990000")
    words = [text.removeprefix(f"Job {job} is ") for status, text in seen if status == 202]
    assert words[-2:] == ["Building", "Running"]
    assert holdings_of(engine, job) == []


def test_version_and_own_result(daemon: Daemon) -> None:
    """The image is told the job's id as `version`, and perf-<id>.json comes before perf.json."""
    dockerfile = (
        f"{FROM}ARG version\nENV version=$version\n"
        "CMD printf 'version %s' $version; echo '{\"perf\": 2}' > /data/perf.json; "
        'echo "{\\"perf\\": 1, \\"version\\": \\"$version\\"}" > /data/perf-$version.json\n'
    )
    job = launch(daemon, dockerfile)
    assert said(daemon, job) == "Successful - Model performance : 1.000000"
    assert curl(daemon, f"/status?id={job}", "-H", "Accept: application/json").json == {
        "id": job,
        "status": "Successful",
        "phase": None,
        "perf": 1.0,
        "metrics": {"perf": 1, "version": job},
        "error": None,
    }
    assert f"\nversion {job}\nexited with code 0 " in log_of(daemon, job)
    phases = curl(daemon, f"/api/v2/jobs/{job}").json["phases"]
    assert [phase["name"] for phase in phases] == ["building", "running", "collecting", "purging"]


def test_results_in_sql(daemon: Daemon) -> None:
    """`run_result` has the perf as a number, metrics as JSON, and the reason of a failure; no other kind's jobs."""
    require("sqlite3")
    good = launch(daemon, f'{FROM}CMD echo \'{{"perf": 1, "loss": [3, 2.5]}}\' > /data/perf.json')
    bad = launch(daemon, f"{FROM}CMD exit 3")
    assert said(daemon, good).startswith("Successful")
    assert said(daemon, bad).startswith("Failed")
    columns = "state, perf, typeof(perf), metrics ->> '$.loss[1]', finished is not null, error_code"
    query = f"select {columns} from run_result where uuid in ('{good}', '{bad}') order by job_id"
    shell = [shutil.which("sqlite3") or "sqlite3", "-readonly", str(daemon.database_file), query]
    rows = subprocess.run(shell, capture_output=True, check=True, text=True).stdout.splitlines()
    assert rows == ["succeeded|1.0|real|2.5|1|", "failed||null||1|run_failed"]


def test_output_is_live_and_in_order(daemon: Daemon) -> None:
    """What the container prints, on stdout and stderr, is in the log while it runs."""
    job = launch(daemon, f"{FROM}CMD echo out 1; sleep .1; echo err 2 >&2; sleep .1; echo out 3; sleep 60")
    until(lambda: log_of(daemon, job), lambda log: "out 3\n" in log)
    assert "\nout 1\nerr 2\nout 3\n" in log_of(daemon, job)
    shown = curl(daemon, f"/api/v2/jobs/{job}").json
    assert (shown["phase"], shown["progress"]["output_bytes"]) == ("running", 18)
    curl(daemon, f"/api/v2/jobs/{job}/cancel", "-X", "POST")


def test_a_sweep_takes_nothing_of_what_runs(daemon: Daemon) -> None:
    """A cancel makes the daemon sweep; a container that runs meanwhile goes on to its end."""
    job = launch(daemon, f"{FROM}CMD echo started; sleep 2; {PERF.removeprefix('CMD ')}")
    until(lambda: log_of(daemon, job), lambda log: "started" in log)
    other = launch(daemon, f"{FROM}CMD sleep 60")
    curl(daemon, f"/api/v2/jobs/{other}/cancel", "-X", "POST")
    assert said(daemon, other) == "Failed - cancelled"
    assert said(daemon, job) == "Successful - Model performance : 0.500000"
