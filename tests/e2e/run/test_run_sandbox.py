"""The sandbox from within and from the engine's side: no network, no rights, nothing writable but what is said."""

import json

import pytest

from harness.bodies import dockerfile
from harness.client import Fields
from harness.engine import PrivateEngine
from harness.holdings import holdings_of
from harness.run_box import MIB, PERF, RunBox, script
from imagejobd.model.ownership import resource_name

TMP_MAX_BYTES = 8 * MIB
# Each line of it tries what must not work, or what must, and adds to the facts that become the metrics.
CAN = 'can() { name=$1; shift; "$@" >/dev/null 2>&1 && is=true || is=false; echo "\\"$name\\": $is," >> /tmp/facts; }'
TELL = 'tell() { echo "\\"$1\\": \\"$(echo $2)\\"," >> /tmp/facts; }'
REPORT = '{ echo "{"; cat /tmp/facts; echo "\\"perf\\": 1}"; } > /data/perf.json'
STATUS = "tell {0} \"$(sed -n 's/^{0}:[[:space:]]*//p' /proc/self/status)\""


@pytest.fixture(scope="module")
def facts(engine: PrivateEngine) -> Fields:
    """What a container that runs as root has found out about its surroundings."""
    with RunBox(engine, kinds={"run": {"tmp_max_bytes": TMP_MAX_BYTES, "files": 64}}) as box:
        job = box.launch(
            dockerfile(
                script(
                    *(CAN, TELL),
                    *("can write_tmp touch /tmp/x", "can write_data touch /data/x"),
                    "can write_root touch /x",
                    "can write_bin touch /bin/sh",
                    "can write_shm touch /dev/shm/x",
                    *("cp /bin/busybox /tmp/busybox", "can execute_tmp /tmp/busybox true", "rm /tmp/busybox"),
                    *("can fill_tmp dd if=/dev/zero of=/tmp/big bs=1M count=16", "tell tmp $(stat -c %s /tmp/big)"),
                    "rm /tmp/big",
                    "can mount mount -t tmpfs none /data",
                    "can remount mount -o remount,rw /",
                    "can mknod mknod /tmp/null c 1 3",
                    "can chown chown 1 /tmp/x",
                    "can chroot chroot / /bin/true",
                    "can set_hostname hostname else",
                    "can write_sysctl cp /proc/sys/kernel/core_uses_pid /proc/sys/kernel/core_uses_pid",
                    "can unshare unshare -n true",
                    "can ping ping -c 1 -W 1 127.0.0.1",
                    f"can reach_host wget -q -T 2 -O /dev/null {box.daemon.url}/healthz",
                    "can resolve nslookup -timeout=1 localhost.example",
                    "tell interfaces $(ls /sys/class/net)",
                    "tell files $(ulimit -n)",
                    "tell cores $(ulimit -c)",
                    *(
                        STATUS.format(name)
                        for name in ("CapEff", "CapBnd", "CapPrm", "CapInh", "NoNewPrivs", "Seccomp")
                    ),
                    REPORT,
                )
            )
        )
        return box.metrics(job)


def test_only_its_own_places_are_writable(facts: Fields) -> None:
    """/tmp and /data take files; the root and everything else does not, and no mount changes that."""
    assert facts["write_tmp"]
    assert facts["write_data"]
    for attempt in ("write_root", "write_bin", "write_shm", "mount", "remount", "write_sysctl"):
        assert not facts[attempt], attempt


def test_tmp_is_small_and_runs_nothing(facts: Fields) -> None:
    """What is put into /tmp cannot be executed, and there is room for no more than is configured."""
    assert not facts["execute_tmp"]
    assert not facts["fill_tmp"]
    assert int(facts["tmp"]) <= TMP_MAX_BYTES


def test_network_is_off(facts: Fields) -> None:
    """There is a loopback device and nothing else; neither the host's loopback nor a name server can be reached."""
    assert facts["interfaces"] == "lo"
    assert not facts["reach_host"]
    assert not facts["resolve"]


def test_root_has_no_rights(facts: Fields) -> None:
    """root in the container has no capability, gets none by any program, and system calls are filtered."""
    assert {facts[sort] for sort in ("CapEff", "CapBnd", "CapPrm", "CapInh")} == {"0" * 16}
    assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
    for attempt in ("mknod", "chown", "chroot", "set_hostname", "unshare"):
        assert not facts[attempt], attempt
    assert (facts["files"], facts["cores"]) == ("64", "0")


def test_settings_that_the_engine_was_given(engine: PrivateEngine) -> None:
    """Container and volume have the job's name and labels, and the engine was given every bound that is configured."""
    bounds = {"memory_bytes": 96 * MIB, "pids": 50, "cpus": 0.5, "files": 99, "file_max_bytes": 5 * MIB}
    with RunBox(engine, kinds={"run": bounds}) as box:
        job = box.launch(dockerfile(script("echo started", "sleep 60", PERF)))
        box.prints(job, "started")
        installation = box.daemon.installation
        name = resource_name(installation, job, 1)
        [container] = json.loads(engine.docker("inspect", name))
        [volume] = json.loads(engine.docker("volume", "inspect", name))
        assert box.cancel(job) == 202
        assert box.ended(job)["state"] == "cancelled"
        assert holdings_of(engine, job) == []
    config, host = container["Config"], container["HostConfig"]
    assert volume["Labels"] == {"imagejobd.job": job, "imagejobd.installation": installation}
    assert volume["Labels"].items() <= config["Labels"].items()
    assert config["NetworkDisabled"]
    assert config["Healthcheck"] == {"Test": ["NONE"]}
    assert host["NetworkMode"] == "none"
    assert (host["CapDrop"], host["CapAdd"], host["Privileged"]) == (["ALL"], None, False)
    assert "no-new-privileges" in host["SecurityOpt"]
    assert (host["ReadonlyRootfs"], host["Init"], host["AutoRemove"]) == (True, True, False)
    assert host["Memory"] == host["MemorySwap"] == bounds["memory_bytes"]
    assert (host["NanoCpus"], host["PidsLimit"]) == (500_000_000, 50)
    limits = {limit["Name"]: (limit["Soft"], limit["Hard"]) for limit in host["Ulimits"]}
    assert limits == {"nofile": (99, 99), "fsize": (5 * MIB, 5 * MIB), "core": (0, 0)}
    assert "noexec" in host["Tmpfs"]["/tmp"]
    assert host["RestartPolicy"]["Name"] in ("", "no")
    assert not host["Binds"]
    assert [(mount["Type"], mount["Name"], mount["Destination"]) for mount in container["Mounts"]] == [
        ("volume", volume["Name"], "/data")
    ]
