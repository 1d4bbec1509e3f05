"""The processes of a screen, with Dask: a crew on this machine, one process for each device, or a running cluster.

The process that started the screen reads and writes; the others match and run the network. On a CPU each of them does
both on one core. A GPU has one process, and what it runs is matched by others. Few blocks are on their way at a time,
so that memory does not grow with the number of structures.
"""

from __future__ import annotations

import logging
import os
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

import torch

from ase_definet.errors import ScreeningError
from ase_definet.relaxation.devices import checked_device
from ase_definet.relaxation.freed_memory import keep_freed_memory
from ase_definet.screening.screen import Block, digest_of, match_block, relax_block
from ase_definet.structures.extxyz import printable

Task: TypeAlias = tuple[tuple[str, ...], list[Any], int, dict[str, Any]]
"""Arguments of :func:`~ase_definet.screening.screen.relax_block`."""

MOST_WORKERS = 8
"""Processes that are started without being asked for, at most: each takes some 400 MB."""
_AHEAD = 3
"""Blocks queued for each worker."""
_LOOK_AGAIN, _WORKERLESS = 10.0, 120.0  # in s
_DEVICE, _MATCHING = "DEVICE", "MATCHING"
_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Crew:
    """The processes of a screen on this machine.

    Attributes:
        devices: The GPU that each process that runs the network sees, by its index or identifier as in
            ``CUDA_VISIBLE_DEVICES``; empty for a process on the CPU.
        matching: Number of processes that only match, for those.
    """

    devices: tuple[str, ...]
    matching: int = 0

    @classmethod
    def of(cls, device: str, workers: int | None = None, gpus: Sequence[str] | None = None) -> Crew:
        """Return the crew for a device.

        Args:
            device: As in :func:`~ase_definet.relaxation.devices.checked_device`; ``cuda`` is all GPUs.
            workers: Number of processes on a CPU, and of those that match for GPUs; by default one for each core.
            gpus: All GPUs; by default those that CUDA shows.

        Raises:
            DeviceError: The device is not available.
        """
        workers = workers or min(MOST_WORKERS, torch.get_num_threads())
        if gpus is None:
            wanted = checked_device(device)
            gpus = visible_gpus() if wanted.type == "cuda" else ()
        name, _, index = device.partition(":")
        if name == "cpu" or not gpus:
            return cls(("",) * workers)
        return cls((gpus[int(index)],) if index else tuple(gpus), workers)

    @property
    def device(self) -> str:
        """The device by the name that it has in every process of the crew."""
        return "cuda" if any(self.devices) else "cpu"

    def spec(self) -> dict[str, dict[str, Any]]:
        """Return the workers in the form in which Dask starts them."""
        from distributed import Nanny  # noqa: PLC0415 - an extra

        kinds = [(f"device-{place}", _DEVICE, gpu) for place, gpu in enumerate(self.devices)]
        kinds += [(f"matching-{place}", _MATCHING, "") for place in range(self.matching)]
        return {
            name: {
                "cls": Nanny,
                "options": {
                    "nthreads": 1,
                    "resources": {kind: 1},
                    "env": {_VISIBLE: gpu},
                    "silence_logs": logging.CRITICAL,  # what goes wrong comes back with the blocks
                },
            }
            for name, kind, gpu in kinds
        }


def visible_gpus() -> tuple[str, ...]:
    """Return the GPUs that CUDA shows to this process, as in ``CUDA_VISIBLE_DEVICES``."""
    count = torch.cuda.device_count()
    listed = [one.strip() for one in os.environ.get(_VISIBLE, "").split(",") if one.strip()]
    return tuple(listed[:count]) if listed else tuple(str(index) for index in range(count))


@contextmanager
def local_client(crew: Crew) -> Iterator[Any]:
    """Start the processes of a crew and yield a client of them; Ctrl-C ends them without their last errors."""
    from distributed import Client, Scheduler, SpecCluster  # noqa: PLC0415 - an extra

    scheduler = {"cls": Scheduler, "options": {"dashboard": False, "host": "127.0.0.1"}}
    interrupted: KeyboardInterrupt | None = None
    tornado = logging.getLogger("tornado.application")  # reports what Ctrl-C cancels before it gets here
    level = tornado.level
    tornado.setLevel(logging.CRITICAL)
    try:
        with (
            SpecCluster(scheduler=scheduler, workers=crew.spec(), silence_logs=logging.ERROR) as cluster,
            Client(cluster) as client,
        ):
            client.register_worker_callbacks(_set_up)
            try:
                yield client
            except KeyboardInterrupt as error:
                interrupted = error
                logging.getLogger("distributed").setLevel(logging.CRITICAL)
                raise
    except Exception:  # on a busy machine, closing may time out
        if interrupted is not None:
            raise interrupted from None
        raise
    finally:
        tornado.setLevel(level)


def _set_up() -> None:
    """Prepare a worker.

    It ignores Ctrl-C, which a terminal also sends to workers: the process that launched them ends them. And it keeps
    freed memory, which Dask tells glibc to return at once.
    """
    keep_freed_memory(whatever_is_set=True)
    with suppress(ValueError):  # not in the main thread: then it gets none
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def on_cluster(client: Any, tasks: Iterator[Task], crew: Crew | None = None) -> Iterator[Block]:
    """Keep the workers busy and yield results in order; a task whose worker died runs again on another.

    Args:
        client: Client of the workers.
        tasks: What they do, read as far as they need it.
        crew: The processes, if they are on this machine; others may arrive late.
    """
    from distributed import KilledWorker  # noqa: PLC0415 - an extra

    waiting: deque[tuple[Task, Any]] = deque()
    broken: ScreeningError | None = None
    while True:
        most = _AHEAD * (len(crew.devices) if crew else max(1, len(client.scheduler_info()["workers"])))
        try:
            for task in islice(tasks, max(0, most - len(waiting))):
                waiting.append((task, _submitted(client, task, crew)))
        except ScreeningError as error:  # what came before it counts; the tasks have ended
            broken = error
        if not waiting:
            if broken is not None:
                raise broken
            return
        task, future = waiting.popleft()
        try:
            block = _awaited(client, future, patient=crew is None)
        except KilledWorker:  # one of its structures kills every worker it comes to
            block = _one_by_one(client, task, crew)
        yield block


def _submitted(client: Any, task: Task, crew: Crew | None, *, retries: int = 2) -> Any:
    """Send a block to the workers: to those that match first, where there are such."""
    names, structures, first, settings = task
    options: dict[str, Any] = {"pure": False, "retries": retries}
    if crew is None:
        return client.submit(relax_block, *task, **options)
    given: Any = structures
    if crew.matching:
        given = client.submit(match_block, structures, settings, resources={_MATCHING: 1}, **options)
    own = settings | {"device": crew.device}
    return client.submit(relax_block, names, given, first, own, resources={_DEVICE: 1}, **options)


def _awaited(client: Any, future: Any, *, patient: bool) -> Block:
    """Wait for a block, but not for ever.

    Args:
        client: Client of the cluster.
        future: The block.
        patient: Whether workers may arrive late, as those of a batch system do.

    Raises:
        ScreeningError: All workers on this machine have died, and none could be restarted.
    """
    alone = 0
    while True:
        try:
            block: Block = future.result(timeout=_LOOK_AGAIN)
        except TimeoutError:
            if future.done():  # it is the block's own
                raise
            alone = 0 if patient or client.scheduler_info()["workers"] else alone + 1
            if alone * _LOOK_AGAIN >= _WORKERLESS:
                raise ScreeningError(
                    "all workers died and none could be restarted, perhaps for lack of memory; the same command with "
                    "fewer --workers resumes the screen"
                ) from None
        else:
            return block


def _one_by_one(client: Any, task: Task, crew: Crew | None) -> Block:
    """Relax the structures of a block one by one; those whose workers die are recorded as failures."""
    from distributed import KilledWorker  # noqa: PLC0415 - an extra

    out: list[Block] = []
    names, structures, first, settings = task
    for index, (name, given) in enumerate(zip(names, structures, strict=True), start=first):
        try:
            future = _submitted(client, ((name,), [given], index, settings), crew, retries=0)
            out.append(_awaited(client, future, patient=crew is None))
        except KilledWorker:
            reason = "every worker that was given this structure died, perhaps for lack of memory"
            failure = {"index": index, "name": printable(name), "reason": reason}
            out.append(Block((printable(name),), (digest_of(given),), b"", [], [failure]))
    return Block(
        tuple(name for block in out for name in block.names),
        tuple(digest for block in out for digest in block.digests),
        b"".join(block.structures for block in out),
        [row for block in out for row in block.rows],
        [failure for block in out for failure in block.failures],
    )
