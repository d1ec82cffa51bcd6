"""Results that are none: each gets a reason of its own on one line, and harms nobody who reads it."""

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
    "link within data": Bad(
        f"{writes('{0}', '/data/x')}; ln -s x /data/perf.json".replace("{0}", '{"perf": 1}'), "link"
    ),
    "link to nothing": Bad("ln -s /nowhere /data/perf.json", "link"),
    "link to itself": Bad("ln -s perf.json /data/perf.json", "link"),
    "link out": Bad("ln -s ../../../../../../etc/hostname /data/perf.json", "link"),
    "link to what breaks headers": Bad('ln -s "$(yes "$(printf "\\001")" | head -n 2000)" /data/perf.json', "link"),
    "FIFO": Bad("mkfifo /data/perf.json", "regular file"),
    "socket": Bad(
        "ln -s /data/perf.json /dev/log; timeout 1 syslogd -n -O /tmp/log; test -S /data/perf.json", "regular file"
    ),
    "directory": Bad("mkdir /data/perf.json; touch /data/perf.json/perf.json", "director|regular file"),
    "sparse file of 1 GB": Bad("truncate -s 1G /data/perf.json", "larger|bytes"),
    "a little too large": Bad('printf \'{"perf": 1, "x": "%0262144d"}\' 0 > /data/perf.json', "larger|bytes"),
    "empty": Bad("touch /data/perf.json", "JSON"),
    "no JSON": Bad(writes("perf=1"), "JSON"),
    "cut short": Bad(writes('{"perf": 1'), "JSON"),
    "two values": Bad(writes('{"perf": 1} {"perf": 2}'), "JSON"),
    "no UTF-8": Bad('printf \'{"perf": 1, "x": "\\377"}\' > /data/perf.json', "UTF-8"),
    "UTF-16": Bad("printf '\\377\\376{\\0}\\0' > /data/perf.json", "UTF-8"),
    "deep": Bad('printf "{\\"perf\\": 1, \\"x\\": $(yes [ | head -n 10000 | tr -d "\\n")" > /data/perf.json', "deep"),
    "deep and whole": Bad(
        "{ printf '{\"perf\": 1, \"x\": '; yes [ | head -n 10000 | tr -d '\\n'; yes ] | head -n 10000 | tr -d '\\n';"
        " printf '}'; } > /data/perf.json",
        "deep",
    ),
    "list": Bad(writes("[1]"), "object"),
    "number": Bad(writes("0.99"), "object"),
    "null": Bad(writes("null"), "object"),
    "no perf": Bad(writes('{"Perf": 1}'), "perf"),
    "perf is null": Bad(writes('{"perf": null}'), "not a number"),
    "perf is true": Bad(writes('{"perf": true}'), "not a number"),
    "perf is text": Bad(writes('{"perf": "0.99"}'), "not a number"),
    "perf is a list": Bad(writes('{"perf": [0.99]}'), "not a number"),
    "NaN": Bad(writes('{"perf": NaN}'), "NaN"),
    "Infinity": Bad(writes('{"perf": -Infinity}'), "Infinity"),
    "1e999": Bad(writes('{"perf": 1e999}'), "finite"),
    "NaN elsewhere": Bad(writes('{"perf": 1, "x": NaN}'), "NaN"),
    "perf twice": Bad(writes('{"perf": 1, "perf": 2}'), "twice"),
    "half a surrogate": Bad(writes('{"perf": 1, "x": "\\ud800"}'), "surrogate"),
    "written and then failed": Bad(writes('{"perf": 1}') + "; exit 1", "code 1", "run_failed"),
}

# A regular file with the object in it is a result, whatever its mode, its links and its neighbours.
GOOD = {
    "hard link": f"{writes('{0}', '/data/x')}; ln /data/x /data/perf.json",
    "unreadable": f"{writes('{0}')}; chmod 000 /data/perf.json",
    "space around": writes("  {0}  "),
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
    """An object in a regular file is a result, however odd that file is."""
    box, ids = jobs
    assert box.outcome(ids[name]) == "Successful - Model performance : 2.000000"
