"""An afternoon of a build host: jobs of every kind and state, as the pictures in docs/ show them."""

import random
from pathlib import Path

from rows import Rows, rows_in

BUILD = {"fetching": 0.05, "building": 0.7, "pushing": 0.2, "purging": 0.05}
RUN = {"building": 0.3, "running": 0.6, "collecting": 0.05, "purging": 0.05}
APPS = ("web/storefront", "web/checkout", "api/orders", "api/payments", "jobs/reports", "ml/ranker", "infra/proxy")
PEOPLE = ({"sub": "web-team"}, {"sub": "api-team"}, {"sub": "ci"}, {})
REGISTRIES = ("eu-west", "us-east", "ap-south", "sa-east")
MIB = 1024 * 1024


def fill(database: Path) -> dict[str, str]:
    """Write them; the UUIDs of those that tests look at, by what is to be seen."""
    chance = random.Random(11)
    with rows_in(database) as rows:
        uuids = [_ended(rows, chance, number) for number in range(80)]
        return {
            "run": next(uuid for number, uuid in reversed(list(enumerate(uuids))) if number % 9 == 4),
            "failed": _failed(rows, age_s=400.0),
            "copying": _copying(rows),
            "building": rows.job(
                spec={"image": "registry.example/web/storefront:2.0", "tags": ["latest"]},
                state="running",
                age_s=38.0,
                phases={"fetching": 0.1, "building": 0.9},
                log=build_log(60)[:-3],
                submitter=PEOPLE[0],
                labels={"team": "web"},
                progress={"percent": 58, "step": 4, "steps": 7, "step_name": "[4/7] RUN npm ci && npm run build"},
            ),
            "queued": [_queued(rows, number) for number in range(4)][-1],
        }


def build_log(packages: int) -> list[str]:
    """What a build prints, in colours."""
    lines = ["#1 [internal] load build definition", "#1 done 0.0s", "#2 [1/5] FROM docker.io/library/python:3.12-slim"]
    lines += [
        "#2 done 0.4s",
        "#3 [2/5] COPY requirements.txt .",
        "#3 done 0.1s",
        "#4 [3/5] RUN pip install -r requirements.txt",
    ]
    for number in range(packages):
        lines.append(f"#4 \x1b[32m✔\x1b[0m Collecting package-{number} \x1b[2m(from -r requirements.txt)\x1b[0m")
        lines.append(f"#4   Downloading package_{number}-1.0-py3-none-any.whl (\x1b[36m{7 * number + 12} kB\x1b[0m)")
    lines += [
        "#4 \x1b[33mWARNING:\x1b[0m Running pip as the root user",
        "#4 done 8.1s",
        "#5 [4/5] COPY . /app",
        "#5 done 0.2s",
    ]
    lines += [
        "#6 [5/5] RUN python -m pytest -q",
        "#6 \x1b[32m" + 40 * "." + "\x1b[0m",
        "#6 \x1b[32m40 passed\x1b[0m in 3.2s",
    ]
    return [*lines, "#6 done 3.9s"]


def _ended(rows: Rows, chance: random.Random, number: int) -> str:
    age_s, took_s = (81 - number) * 110 + chance.uniform(-40, 40) + 500, chance.lognormvariate(3.2, 0.6)
    app, who = chance.choice(APPS), chance.choice(PEOPLE)
    if number % 9 == 4:
        perf = round(0.74 + 0.002 * number + chance.uniform(-0.015, 0.015), 4)
        result = {"perf": perf, "metrics": {"perf": perf, "loss": round(1 - perf, 4), "epochs": 12}}
        log = [f"epoch {epoch}: loss {1 / (epoch + 1):.4f}" for epoch in range(12)]
        spec = {"dockerfile": "FROM busybox\n"}
        return rows.job(
            "run",
            spec,
            age_s=age_s,
            took_s=took_s,
            phases=RUN,
            log=log,
            labels={"model": "ranker"},
            submitter=PEOPLE[0],
            result=result,
        )
    if number % 13 == 7:
        return _failed(rows, age_s)
    image = f"registry.example/{app}:1.{number}"
    result = {"image": image, "digest": f"sha256:{chance.getrandbits(256):064x}"}
    labels = {"team": app.partition("/")[0]} if chance.random() < 0.6 else {}
    state = "cancelled" if number % 31 == 20 else "succeeded"
    return rows.job(
        spec={"image": image},
        state=state,
        age_s=age_s,
        took_s=took_s,
        phases=BUILD,
        log=build_log(20),
        labels=labels,
        submitter=who,
        result=result,
    )


def _failed(rows: Rows, age_s: float) -> str:
    log = [*build_log(20)[:-3], "#6 \x1b[31mFAILED\x1b[0m tests/test_orders.py::test_total - assert 41 == 42"]
    log += ["#6 \x1b[1;31m1 failed\x1b[0m, \x1b[32m39 passed\x1b[0m in 3.4s", "#6 ERROR: exit code: 1"]
    return rows.job(
        spec={"image": "registry.example/api/orders:1.90"},
        state="failed",
        age_s=age_s,
        took_s=14.0,
        phases={"fetching": 0.1, "building": 0.9},
        log=log,
        error=("build_failed", "Dockerfile line 7: RUN python -m pytest -q: exit code: 1"),
        labels={"team": "api"},
        submitter=PEOPLE[1],
    )


def _copying(rows: Rows) -> str:
    """A copy to four registries: one further than the others, one refused for now, one that has it by mounting."""
    sizes = ((296, 38, 114), (181, 0, 210), (19, 0, 0), (0, 534, 0))
    endpoints = [f"https://registry-{name}.example" for name in REGISTRIES]
    targets = [
        {
            "endpoint": endpoint,
            "sent_bytes": sent * MIB,
            "mounted_bytes": mounted * MIB,
            "skipped_bytes": there * MIB,
            "total_bytes": 534 * MIB,
            "done": 0,
            "failed": 0,
        }
        for endpoint, (sent, mounted, there) in zip(endpoints, sizes, strict=True)
    ]
    targets[2] |= {
        "failed": 1,
        "error": "registry-ap-south.example answered 429 Too Many Requests; it is tried again in 12 s",
    }
    source = {"endpoint": "https://registry.example", "image": "ml/ranker", "ref": "2.4.0"}
    return rows.job(
        "distribute",
        {"source": source, "targets": [{"endpoint": endpoint} for endpoint in endpoints]},
        state="running",
        age_s=52.0,
        phases={"listing": 0.1, "copying": 0.9},
        log=["ml/ranker:2.4.0 to https://registry-sa-east.example ml/ranker: copied 2.4.0, 534 MiB mounted"],
        submitter=PEOPLE[2],
        labels={"release": "2.4.0"},
        progress={"images": 1, "images_done": 0, "targets": targets},
    )


def _queued(rows: Rows, number: int) -> str:
    app = APPS[number]
    spec, labels = {"image": f"registry.example/{app}:2.{number}"}, {"team": app.partition("/")[0]}
    return rows.job(spec=spec, state="queued", age_s=24 - 6 * number, submitter=PEOPLE[number], labels=labels)
