"""A real SLURM cluster of two nodes on this machine's loopback: Debian's packages, no systemd, no cgroups, nothing outside a folder.

``python tests/slurm_cluster.py`` installs what is missing and says whether a cluster can run here.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

DAEMONS = "/usr/sbin"  # where Debian puts them; the path of a bare environment lacks it
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "squeue", "sinfo", "munged")
PACKAGES = ("slurm-wlm", "munge")

CONF = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
ReturnToService=2
JobRequeue=1
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={port0} CPUs=1 RealMemory=4000 State=UNKNOWN
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs=1 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=n0,n1 Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why no cluster can run here, None if one can; installs the packages where that is possible."""
    if os.geteuid() != 0:
        return "a cluster needs root"
    if DAEMONS not in os.environ["PATH"].split(os.pathsep):
        os.environ["PATH"] += f"{os.pathsep}{DAEMONS}"
    if lacking := [name for name in PROGRAMS if shutil.which(name) is None]:
        if shutil.which("apt-get") is None:
            return f"{', '.join(lacking)} not found, and there is no apt-get to install {' and '.join(PACKAGES)}"
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
            try:
                done = subprocess.run(["apt-get", *words], env=environment, capture_output=True, text=True, check=False, timeout=240)
            except subprocess.TimeoutExpired:
                return f"apt-get {words[0]} took more than four minutes"
            if done.returncode != 0 and words[0] == "install":
                return f"apt-get install {' '.join(PACKAGES)} failed: {done.stderr.strip()[-300:]}"
    return None


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Cluster:
    """Controller and two nodes, ``n0`` and ``n1``, with one processor each.

    Args:
        folder: configuration, state and logs; private to this cluster.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def start(self) -> None:
        """Start the daemons and wait until both nodes are idle."""
        for name in ("state", "spool/n0", "spool/n1"):
            (self.folder / name).mkdir(parents=True)
        port, port0, port1 = free_ports(3)
        host = socket.gethostname().partition(".")[0]
        (self.folder / "slurm.conf").write_text(CONF.format(host=host, folder=self.folder, port=port, port0=port0, port1=port1))
        self._munge()
        for command in (["slurmctld"], ["slurmd", "-N", "n0"], ["slurmd", "-N", "n1"]):
            self.run(*command)
        limit = time.monotonic() + 30
        while self.run("sinfo", "-h", "-N", "-o", "%T").split() != ["idle", "idle"]:
            if time.monotonic() > limit:
                raise RuntimeError(f"the nodes are not idle after 30 s: {self.run('sinfo', '-N')}\nlogs in {self.folder}")
            time.sleep(0.3)

    def _munge(self) -> None:
        if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode == 0:
            return
        Path("/run/munge").mkdir(exist_ok=True)
        shutil.chown("/run/munge", "munge", "munge")
        subprocess.run(["su", "-s", "/bin/sh", "munge", "-c", "/usr/sbin/munged"], check=True)

    def stop(self) -> None:
        """Cancel what runs, then end the daemons by their process numbers. A munged stays: other clusters may use it."""
        with suppress(subprocess.CalledProcessError):
            self.run("scancel", "--full", "--partition=main")
        time.sleep(0.5)
        for name in ("n0", "n1", "slurmctld"):
            with suppress(OSError, ValueError):
                os.kill(int((self.folder / f"{name}.pid").read_text()), signal.SIGTERM)

    def run(self, *command: str, more: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
        """Run a command against this cluster; what it printed."""
        environment = {**self.environment, **(more or {})}
        done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}{done.stdout}")
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What the controller knows of a job."""
        return dict(word.split("=", 1) for word in self.run("scontrol", "-o", "show", "job", number).split() if "=" in word)

    def wait(self, number: str, *states: str, seconds: float = 150) -> str:
        """Wait until a job is in one of the states; which one it is.

        Raises:
            TimeoutError: it is still in another one.
        """
        limit = time.monotonic() + seconds
        while (state := self.job(number)["JobState"]) not in states:
            if time.monotonic() > limit:
                raise TimeoutError(f"job {number} is {state} after {seconds} s, not {' or '.join(states)}; logs in {self.folder}")
            time.sleep(0.3)
        return state


if __name__ == "__main__":
    reason = missing()
    print(reason or f"a cluster can run here: {', '.join(filter(None, map(shutil.which, PROGRAMS)))}")
    sys.exit(reason is not None)
