"""What the kernel holds of TCP connections: the only witness of a peer that hung up on somebody who does not read."""

from pathlib import Path

TABLE = Path("/proc/net/tcp")
ESTABLISHED = "01"


def untaken_bytes(port: int) -> int:
    """Bytes that clients, over connections that they hold open, have sent to a local port and that were not taken."""
    waiting = 0
    for line in TABLE.read_text().splitlines()[1:]:
        _, _, remote, state, queues, *_ = line.split()
        if state == ESTABLISHED and int(remote.rpartition(":")[2], 16) == port:
            waiting += int(queues.partition(":")[0], 16)
    return waiting
