"""Two daemons never share a state folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagejobd.model.errors import ErrorCode, Permanent
from imagejobd.store.lock import lock_state_dir

HOLD = "import sys, pathlib; from imagejobd.store.lock import lock_state_dir\n"
HOLD += "with lock_state_dir(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_a_second_holder_is_told_who_has_it(tmp_path: Path) -> None:
    """It is refused at once, with the process that holds the folder."""
    with lock_state_dir(tmp_path):
        with pytest.raises(Permanent, match=f"process {os.getpid()}") as refused, lock_state_dir(tmp_path):
            pass
        assert refused.value.code is ErrorCode.CONFLICT
    with lock_state_dir(tmp_path):
        pass


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    """After `kill -9` the next start gets the folder, although the file is still there."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Permanent), lock_state_dir(tmp_path):
            pass
        holder.kill()
        holder.wait()
    with lock_state_dir(tmp_path):
        pass
