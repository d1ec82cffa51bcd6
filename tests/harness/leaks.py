"""The search for secrets in all that anybody can read of a daemon."""

from collections.abc import Collection, Sequence

from harness.client import Client


def check_no_leak(client: Client, paths: Sequence[str], needles: Collection[bytes]) -> None:
    """None of `needles` is in the daemon's files, in its log, or in what it answers `client` at `paths`."""
    daemon = client.daemon
    texts = {str(path): path.read_bytes() for path in daemon.state_dir.rglob("*") if path.is_file()}
    assert any(name.endswith("imagejobd.db-wal") for name in texts)
    texts["daemon.log"] = daemon.log_text().encode()
    for path in ("/api/v2/jobs", "/readyz", *paths):
        answer = client.call("GET", path)
        texts[path] = answer.body + str(answer.headers).encode()
    for place, text in texts.items():
        for needle in needles:
            assert needle not in text, f"{needle!r} is readable in {place}"


def native_paths(job: str) -> list[str]:
    """Where the native API shows a job."""
    return [f"/api/v2/jobs/{job}{part}" for part in ("", "/log", "/events")]
