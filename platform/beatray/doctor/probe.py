"""What `beatray doctor --multi-node` runs on every node: one rank of a process group that also tries the paths."""

from __future__ import annotations

import socket
import sys
import time
from datetime import timedelta
from importlib.metadata import version

import ray
import torch
import torch.distributed as dist

from beatray.corpus.manifest import read_manifest
from beatray.corpus.reader import read_row_group
from beatray.storage.store import Store

SEEN_WITHIN_S = 5.0
"""How long a file of another node may take to show. It is asked for by name: listings are cached for longer."""
AGREE = ("python", "ray", "torch", "numpy", "pyarrow")


class Probe:
    """Runs on one node, as one rank."""

    def __init__(self, rank: int, world: int) -> None:
        torch.set_num_threads(1)
        self._rank, self._world = rank, world

    def meeting_point(self) -> str:
        """Where the ranks meet: an address of this node and a free port."""
        with socket.socket() as free:
            free.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def versions(self) -> dict[str, str]:
        """What has to be the same on all nodes."""
        running = {name: version(name) for name in AGREE if name != "python"}
        return {"python": "{}.{}.{}".format(*sys.version_info), **running}

    def join(self, meeting_point: str, backend: str) -> None:
        """Become a member of the process group."""
        dist.init_process_group(
            backend, init_method=meeting_point, rank=self._rank, world_size=self._world, timeout=timedelta(seconds=60)
        )

    def all_reduce(self, size_mb: int, repeats: int, device: str) -> tuple[bool, list[float]]:
        """(every sum was right, seconds of each all-reduce); the sum of 1 .. world is known at every element."""
        right, seconds = True, []
        for _ in range(repeats):
            tensor = torch.full((size_mb * 2**20 // 4,), float(self._rank + 1), device=device)
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(tensor)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
            right = right and bool((tensor == self._world * (self._world + 1) / 2).all())
        return right, seconds

    def write(self, location: str) -> None:
        """Leave a file for the others."""
        Store(location).write(f"from-{self._rank}", str(self._rank).encode())

    def unseen(self, location: str) -> list[int]:
        """The ranks whose file does not show here."""
        store, deadline = Store(location), time.monotonic() + SEEN_WITHIN_S
        while True:
            missing = [rank for rank in range(self._world) if not _holds(store, f"from-{rank}", str(rank))]
            if not missing or time.monotonic() > deadline:
                return missing
            time.sleep(0.5)

    def read(self, location: str) -> int:
        """Rows of one row group of the corpus, a different one on each rank."""
        store = Store(location)
        shards = read_manifest(store).shards
        shard = shards[self._rank % len(shards)]
        return int(read_row_group(store, shard, self._rank % len(shard.row_groups), ["record_id", "signal"]).num_rows)

    def leave(self) -> None:
        """End the process group."""
        dist.destroy_process_group()


def _holds(store: Store, name: str, text: str) -> bool:
    try:
        return store.read(name) == text.encode()
    except FileNotFoundError:
        return False
