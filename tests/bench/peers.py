"""One image made twice on the same engine and registry: by the docker client, and through the daemon.

Both start from the same folder and end when the image is pushed and gone from the engine again. No step is cached and
no layer is in the registry before: each run has a repository of its own and an empty build cache, and its context
differs by one small file.
"""

import itertools
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from bench.disk import disk_folder
from harness.base_image import load_busybox
from harness.daemon import SOURCE_ROOT, Daemon
from harness.engine import PrivateEngine
from harness.registry import Registry
from harness.services import program

NONCE = "nonce"
ERROR_TAIL_CHARS = 2_000
# Docker 20.10 can loop for ever on very fast output, and its client with it.
RUN_MAX_S = 60


class Peers:
    """A private engine, a registry and the daemon, with a context in `folder`."""

    def __init__(self, engine: PrivateEngine, registry: Registry, daemon: Daemon, folder: Path) -> None:
        self.engine = engine
        self.registry = registry
        self.daemon = daemon
        self.folder = folder
        self.context = folder / "context"
        self.context.mkdir()
        self._numbers = itertools.count()

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Self]:
        with disk_folder() as folder, PrivateEngine() as engine, Registry() as registry:
            load_busybox(engine)
            config = {"server": {"state_dir": str(folder / "state")}}
            with Daemon(config, engine_host=engine.host) as daemon:
                yield cls(engine, registry, daemon, folder)

    def by_docker(self) -> float:
        """Seconds of `docker build FOLDER && docker push && docker rmi`, its output in a file."""
        return self._by_docker(str(self.context))

    def by_docker_from_tar(self) -> float:
        """The same with the context as a tar, which is how the daemon's API takes it: `tar -c | docker build -`."""
        return self._by_docker("-", f"tar -C {self.context} -c . |")

    def _by_docker(self, context: str, source: str = "") -> float:
        reference = self.fresh()
        docker = program("docker")
        return self.timed(
            f"{source} {docker} build --progress=plain --network=none -t {reference} {context} && "
            f"{docker} push {reference} && {docker} rmi {reference}"
        )

    def by_daemon(self) -> float:
        """Seconds from the folder to the end of the job: tar, upload, build, push, purge; its log in a file."""
        fields = shlex.quote("Json=" + json.dumps({"image_name": self.fresh()}))
        url = self.daemon.url
        submit = f"tar -C {self.context} -c . | curl -fsS {url}/api/v1/build -F {fields} -F TarFile=@-"
        took = self.timed(
            f"job=$({submit} | cut -sd'\"' -f4) && echo $job > {self.folder}/job && "
            f'curl -fsSN "{url}/api/v2/jobs/$job/log?follow=1"'
        )
        self.check_finished()
        return took

    def by_client(self) -> float:
        """Seconds of `imagejobd build FOLDER`, from its start to its end."""
        command = shlex.join([sys.executable, "-m", "imagejobd", "build", str(self.context), "-t", self.fresh()])
        return self.timed(f"cd {SOURCE_ROOT} && {command} --url {self.daemon.url}")

    def output(self) -> str:
        """What the last run printed: the docker client's plain progress, or the job's log."""
        return (self.folder / "output").read_text()

    def check_finished(self) -> None:
        status = subprocess.run(
            ["curl", "-fsS", f"{self.daemon.url}/api/v1/{self.job}/status"], capture_output=True, check=True, text=True
        )
        if json.loads(status.stdout) != {"Status": "Finished"}:
            raise RuntimeError(f"the job ended otherwise: {status.stdout}")

    @property
    def job(self) -> str:
        """The UUID of the daemon's last job."""
        return (self.folder / "job").read_text().strip()

    def fresh(self) -> str:
        """Forget all that earlier runs left for this one to use; a new image reference."""
        self.engine.docker("builder", "prune", "-af")
        number = next(self._numbers)
        (self.context / NONCE).write_text(f"{time.time_ns()}\n")
        return f"{self.registry.host}/bench/run-{number}:1"

    def timed(self, command: str) -> float:
        with (self.folder / "output").open("wb") as output:
            began = time.perf_counter()
            done = subprocess.run(
                ["timeout", f"{RUN_MAX_S}", "bash", "-euo", "pipefail", "-c", command],
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
                env=self.engine.client_env(),
            )
            took = time.perf_counter() - began
        if done.returncode:
            raise RuntimeError(f"{command} exited with {done.returncode}: {self.output()[-ERROR_TAIL_CHARS:]}")
        return took
