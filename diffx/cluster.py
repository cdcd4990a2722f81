"""What SLURM tells a process of its job: how many nodes and tasks, where the ranks meet, how to get another turn.

Only the standard library is needed, because contradictions are answered before torch is imported.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .recipes.errors import RecipeError

__all__ = ["ADVICE", "Step", "check_rendezvous", "check_trainer", "first_host", "requeue", "share", "step", "unresolved"]

SHELLS = ("bash", "interactive")  # names of jobs in which a person types commands
ADVICE = "set MASTER_ADDR in the batch script to a name or number of the first node that all nodes can resolve (127.0.0.1 on one machine)"


@dataclass(frozen=True)
class Step:
    """A job step: the processes that one ``srun`` started.

    Args:
        job: the number that ``scontrol`` takes, ``12`` or, in an array, ``12_3``.
        nodes: number of nodes.
        tasks: processes per node, one per device.
        rank: of this process among all of them.
        address: name or number of the host on which the ranks meet.
        port: where they meet there.
    """

    job: str
    nodes: int
    tasks: int
    rank: int
    address: str
    port: int

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.nodes * self.tasks

    def export(self) -> None:
        """Write the step's sizes where Lightning looks for them: of the job's they would be wrong for a part of it, or are missing."""
        os.environ.update(SLURM_NNODES=str(self.nodes), SLURM_NTASKS=str(self.size), SLURM_NTASKS_PER_NODE=str(self.tasks),
                          MASTER_ADDR=self.address, MASTER_PORT=str(self.port))  # fmt: skip


def step(environment: Mapping[str, str] = os.environ) -> Step | None:
    """The job step that this process belongs to; None outside SLURM, in a shell, or where another launcher (torchrun) started it.

    Raises:
        RecipeError: nodes with unequal numbers of tasks, or a job of several tasks whose script starts Python without ``srun``.
    """
    if "SLURM_JOB_ID" not in environment or "TORCHELASTIC_RUN_ID" in environment:
        return None
    started = environment.get("SLURM_STEP_ID", "").isdigit()  # by srun; not in the batch script itself
    nodes = int(environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_NNODES", "1"))
    size = int(environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS", "1"))
    if environment.get("SLURM_JOB_NAME") in SHELLS and (size == 1 or not started):
        return None
    if not started and ("RANK" in environment or not _alone(nodes, size)):
        return None
    layout = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE") or f"{size // nodes}(x{nodes})"
    if "," in layout or size % nodes:
        raise RecipeError(f"SLURM started {layout} tasks on {nodes} nodes, but every node needs the same number, one task per device; "
                          "ask with --ntasks-per-node instead of --ntasks")  # fmt: skip
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    address = environment.get("MASTER_ADDR") or first_host(hosts)
    port = int(environment.get("MASTER_PORT") or 15000 + int(environment["SLURM_JOB_ID"]) % 10000)
    return Step(_job(environment), nodes, size // nodes, int(environment.get("SLURM_PROCID", "0")), address, port)


def share(environment: Mapping[str, str] = os.environ) -> tuple[int, int, int]:
    """(rank, number of processes, rank on this node) as torchrun or SLURM say; (0, 1, 0) where there is one process.

    Raises:
        RecipeError: see `step`.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return tuple(int(environment.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))  # type: ignore[return-value]
    found = step(environment)
    return (0, 1, 0) if found is None else (found.rank, found.size, found.rank % found.tasks)


def _job(environment: Mapping[str, str]) -> str:
    task = environment.get("SLURM_ARRAY_TASK_ID")
    return f"{environment['SLURM_ARRAY_JOB_ID']}_{task}" if task else environment["SLURM_JOB_ID"]


def _alone(nodes: int, size: int) -> bool:
    """Whether the job is for one process; refuses to train with one in a job that was given several."""
    if max(nodes, size) > 1:
        raise RecipeError(f"the job has {nodes} nodes and {max(nodes, size)} tasks, but its script starts Python once; "
                          "put srun before the command (srun --nodes=1 --ntasks=1 for one process only)")  # fmt: skip
    return True


def first_host(hosts: str) -> str:
    """The first name of SLURM's list: ``n[03-05,9],m1`` -> ``n03``."""
    found = re.match(r"([^\[,\s]+)(?:\[(\w+)[^\]]*\]([^,\s]*))?", hosts)
    if found is None:
        raise RecipeError(f"cannot read SLURM's list of nodes {hosts!r}; {ADVICE}")
    return "".join(part or "" for part in found.groups())


def check_trainer(found: Step, trainer: Mapping[str, Any] | None) -> dict[str, int]:
    """The Trainer's ``num_nodes`` and ``devices`` as SLURM laid them out.

    Args:
        found: the job step.
        trainer: the section ``trainer`` of an experiment.

    Raises:
        RecipeError: the experiment asks for another number.
    """
    section = trainer or {}
    problems = []
    if (nodes := section.get("num_nodes")) not in {None, found.nodes}:
        problems.append(f"trainer.num_nodes is {nodes}, but SLURM job {found.job} runs on {found.nodes}; "
                        f"leave the key out (it is read from the job), or submit with nodes={nodes}")  # fmt: skip
    devices = section.get("devices")
    count = len(devices) if isinstance(devices, list) else int(str(devices)) if str(devices).isdigit() else None
    if count not in {None, found.tasks}:
        problems.append(f"trainer.devices is {devices}, but SLURM job {found.job} starts {found.tasks} tasks per node, one per device; "
                        f"leave the key out, or submit with devices={count}")  # fmt: skip
    if problems:
        raise RecipeError(*problems)
    return {"num_nodes": found.nodes, "devices": found.tasks}


def check_rendezvous(found: Step, seconds: float = 10.0) -> None:
    """Resolve the address at which the ranks will meet, and on rank 0 see that its port is free.

    Otherwise they would wait for each other until torch's time-out of half an hour.

    Raises:
        RecipeError: the name does not resolve within ``seconds``, or the port is taken.
    """
    if found.size == 1:
        return
    problem = unresolved(found.address, seconds)
    if problem is None and found.rank == 0:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", found.port))
            except OSError as error:
                raise RecipeError(f"port {found.port} of {found.address}, where the ranks would meet, cannot be used "
                                  f"({error.strerror}); set MASTER_PORT in the batch script to a free one") from error  # fmt: skip
    if problem is not None:
        raise RecipeError(f"the {found.size} ranks are to meet at {found.address}:{found.port}, but {problem}; {ADVICE}")


def unresolved(address: str, seconds: float) -> str | None:
    """Why a host name cannot be used, None if it can; a resolver that hangs is not waited for."""
    answer: list[str | None] = []

    def ask() -> None:
        try:
            socket.getaddrinfo(address, None)
            answer.append(None)
        except OSError as error:
            answer.append(f"that name does not resolve ({error.strerror})")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0] if answer else f"that name did not resolve within {seconds:g} s"


def requeue(job: str) -> str | None:
    """Ask SLURM to start the job again; None on success, else the reason why it will not.

    SLURM ends the job's processes at once, so nothing may be left to do.
    """
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"scontrol requeue {job}: {error}"
    return None if done.returncode == 0 else f"scontrol requeue {job}: {(done.stderr or done.stdout).strip() or done.returncode}"
