"""Results that are none: each gets a reason of its own on one line, and harms nobody who reads it.

All that a file may be is tried in tests/engine/test_sandbox_data.py, and all that it may hold in tests/jobs/run.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from harness.bodies import dockerfile
from harness.engine import PrivateEngine
from harness.run_box import GIB, RunBox, launched, script, writes


class Bad(NamedTuple):
    """How a container leaves its result, and what the reason must say."""

    make: str
    says: str
    code: str = "result_invalid"


CASES = {
    "nothing": Bad("true", "/data/perf.json", "result_missing"),
    "another name": Bad(writes('{"perf": 1}', "/data/Perf.json"), "/data/perf.json", "result_missing"),
    "link to a file of the image": Bad("ln -s /etc/passwd /data/perf.json", "link"),
    "link to what breaks headers": Bad('ln -s "$(yes "$(printf "\\001")" | head -n 2000)" /data/perf.json', "link"),
    "FIFO": Bad("mkfifo /data/perf.json", "regular file"),
    "socket": Bad(
        "ln -s /data/perf.json /dev/log; timeout 1 syslogd -n -O /tmp/log; test -S /data/perf.json", "regular file"
    ),
    "sparse file of 1 GB": Bad("truncate -s 1G /data/perf.json", "larger|bytes"),
    "a little too large": Bad('printf \'{"perf": 1, "x": "%0262144d"}\' 0 > /data/perf.json', "larger|bytes"),
    "no JSON": Bad(writes("perf=1"), "JSON"),
    "deep and whole": Bad(
        "{ printf '{\"perf\": 1, \"x\": '; yes [ | head -n 10000 | tr -d '\\n'; yes ] | head -n 10000 | tr -d '\\n';"
        " printf '}'; } > /data/perf.json",
        "deep",
    ),
    "NaN": Bad(writes('{"perf": NaN}'), "NaN"),
    "written and then failed": Bad(writes('{"perf": 1}') + "; exit 1", "code 1", "run_failed"),
}

# A regular file with the object in it is a result, whatever its neighbours.
GOOD = {
    "beside others": f"{writes('{0}')}; touch /data/perf-1.json; ln -s /etc /data/else; mkfifo /data/fifo",
    "sparse neighbour": f"{writes('{0}')}; truncate -s 200M /data/large",
}


@pytest.fixture(scope="module")
def jobs(engine: PrivateEngine) -> Iterator[tuple[RunBox, dict[str, str]]]:
    """All of them at once, on a box that must be sound afterwards."""
    with RunBox(engine, limits={"run": 4}, kinds={"run": {"file_max_bytes": 2 * GIB}}) as box:
        texts = {name: dockerfile(script(bad.make)) for name, bad in CASES.items()}
        texts |= {name: dockerfile(script(make.replace("{0}", '{"perf": 2}'))) for name, make in GOOD.items()}
        with launched(box, texts) as ids:
            yield box, ids
        box.check_healthy()


@pytest.mark.parametrize("name", CASES)
def test_bad_result(jobs: tuple[RunBox, dict[str, str]], name: str) -> None:
    """The job has failed with a code and one line that says what was found, without what others may not see."""
    box, ids = jobs
    outcome = box.outcome(ids[name])
    print(outcome)
    error = box.job(ids[name])["error"]
    assert outcome.startswith("Failed - ")
    assert error["code"] == CASES[name].code, error
    assert re.search(CASES[name].says, outcome), outcome
    assert "root:x" not in outcome + box.log(ids[name])


@pytest.mark.parametrize("name", GOOD)
def test_odd_but_good_result(jobs: tuple[RunBox, dict[str, str]], name: str) -> None:
    """An object in a regular file is a result, however odd those beside it are."""
    box, ids = jobs
    assert box.outcome(ids[name]) == "Successful - Model performance : 2.000000"
