"""`beatray doctor --multi-node`: what a run asks of a cluster, tried on all its nodes in about a minute.

One Ray actor per node (two on a lone node, so that something is exchanged) forms a torch process group, all-reduces
tensors with known sums, writes into and reads from the shared `out=`, and reads a row group of the corpus; Ray Data
then reads the corpus spread over the nodes. Contract: needs an open Ray session; takes no CPUs from others; every
failure is a finding that names the node.
"""

from __future__ import annotations

import logging
import statistics
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from beatray.corpus.manifest import read_manifest
from beatray.corpus.reader import read_row_group
from beatray.doctor.finding import Finding, fail, ok, warn
from beatray.doctor.probe import AGREE, Probe
from beatray.storage.store import Store
from beatray.track.secrets import without_secrets

SIZES_MB = (1, 4, 16)
SLOW_MB_S = 50.0
"""Below, the 16 MB of gradients of a 4-million-parameter encoder cost a third of a second a step."""
PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Node:
    """One node that can do work."""

    id: str
    name: str
    gpus: int


def nodes() -> list[Node]:
    """The living nodes that have CPUs or GPUs to give: a head node without work is left out."""
    found = []
    for node in ray.nodes():
        has = node["Resources"]
        if node["Alive"] and (has.get("CPU", 0) > 0 or has.get("GPU", 0) > 0):
            found.append(Node(node["NodeID"], f"{node['NodeName']} ({node['NodeID'][:6]})", int(has.get("GPU", 0))))
    return sorted(found, key=lambda node: node.name)


def check_cluster(out: str, corpus: str | None, seconds: float = 20.0) -> list[Finding]:
    """All checks of this file, on the cluster that this session is connected to."""
    where = nodes()
    if not where:
        return [fail("no node of the cluster has CPUs or GPUs to give", "add worker nodes: ray start --address=")]
    members = where if len(where) > 1 else where * 2
    findings = [ok(f"{len(where)} nodes: {', '.join(node.name for node in where)}")]
    on_gpus = all(node.gpus for node in where) and (len(where) > 1 or where[0].gpus > 1)
    actor = ray.remote(Probe)
    probes = [
        actor.options(
            num_cpus=0,
            num_gpus=1 if on_gpus else 0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        ).remote(rank, len(members))
        for rank, node in enumerate(members)
    ]
    try:
        agreed, answers = _each(members, [probe.versions.remote() for probe in probes], "does not start workers")
        findings += agreed or check_versions(dict(zip([node.name for node in members], answers, strict=True)))
        if agreed:
            return findings  # all else would only fail after it
        findings += _collective(members, probes, on_gpus, seconds)
        findings += _shared_folder(members, probes, out)
        if corpus:
            failed, rows = _each(members, [p.read.remote(corpus) for p in probes], "cannot read the corpus")
            findings += failed or [ok(f"every node reads the corpus ({sum(rows)} rows)")]
        return [*findings, *_spread_read(corpus, len(where))]
    finally:
        for probe in probes:
            ray.kill(probe)


def check_versions(by_node: dict[str, dict[str, str]]) -> list[Finding]:
    """The same versions everywhere: pickled classes and process groups go between nodes."""
    findings = []
    for name in AGREE:
        versions = {node: has[name] for node, has in by_node.items()}
        if len(set(versions.values())) > 1:
            listed = ", ".join(f"{has} on {node}" for node, has in versions.items())
            findings.append(fail(f"{name} differs: {listed}", f"install the same {name} on every node"))
    return findings or [ok(f"the same versions of {', '.join(AGREE)} on all nodes")]


def check_bandwidth(world: int, backend: str, rates: dict[int, float]) -> Finding:
    """Rates in MB/s of the data that each rank must send and receive, by the size of the tensor in MB."""
    rates_text = ", ".join(f"{size} MB at {rate:,.0f} MB/s" for size, rate in rates.items())
    what = f"all-reduce over {world} ranks ({backend}), sums checked: {rates_text}"
    if rates[max(rates)] < SLOW_MB_S:
        return warn(what, "the network is slow for training: look for the interface with NCCL_/GLOO_SOCKET_IFNAME")
    return ok(what)


def _collective(members: Sequence[Node], probes: Sequence[Any], on_gpus: bool, seconds: float) -> list[Finding]:
    backend, device = ("nccl", "cuda") if on_gpus else ("gloo", "cpu")
    point = ray.get(probes[0].meeting_point.remote())
    failed, _ = _each(members, [p.join.remote(point, backend) for p in probes], f"does not join ({backend}, {point})")
    if failed:
        return failed
    rates = {}
    for size in SIZES_MB:
        repeats, took = 3, 0.0
        while True:
            began = time.monotonic()
            runs = [probe.all_reduce.remote(size, repeats, device) for probe in probes]
            failed, answers = _each(members, runs, f"fails in an all-reduce of {size} MB")
            if failed:
                return failed
            wrong = [node.name for node, (right, _) in zip(members, answers, strict=True) if not right]
            if wrong:
                what = f"an all-reduce of {size} MB gave a wrong sum on {', '.join(wrong)}"
                return [fail(what, "do not train there: look for faulty memory, network cards or drivers")]
            took += time.monotonic() - began
            if took >= seconds / len(SIZES_MB):
                break
            repeats = min(10 * repeats, max(1, int(repeats * seconds / len(SIZES_MB) / max(took, 1e-3))))
        slowest = [max(of_ranks) for of_ranks in zip(*(times for _, times in answers), strict=True)]
        share = 2 * (len(members) - 1) / len(members)
        rates[size] = share * size / statistics.median(slowest)
    ray.get([probe.leave.remote() for probe in probes])
    return [check_bandwidth(len(members), backend, rates)]


def _shared_folder(members: Sequence[Node], probes: Sequence[Any], out: str) -> list[Finding]:
    """Every node sees what every other node writes under `out=`."""
    name = f".beatray-doctor-{uuid.uuid4().hex[:8]}"
    location, shown = Store(out).child(name).location, without_secrets(out)
    try:
        failed, _ = _each(members, [p.write.remote(location) for p in probes], f"cannot write out={shown}")
        if failed:
            return failed
        failed, unseen = _each(members, [p.unseen.remote(location) for p in probes], f"cannot read out={shown}")
        blind = {
            node.name: sorted({members[rank].name for rank in ranks})
            for node, ranks in zip(members, unseen, strict=False)
            if ranks
        }
        findings = [
            fail(
                f"{node} does not see what {', '.join(others)} wrote under out={shown}",
                "give a folder that all nodes share",
            )
            for node, others in blind.items()
        ]
        return failed or findings or [ok(f"every node sees what the others write under out={shown}")]
    finally:
        Store(out).delete_folder(name)


def _spread_read(corpus: str | None, n_nodes: int) -> list[Finding]:
    """Ray Data reads the corpus, or made-up rows, with every row counted and the work spread over the nodes."""
    if corpus:
        store = Store(corpus)
        groups = [
            {"shard": n, "group": g, "rows": rows}
            for n, shard in enumerate(read_manifest(store).shards)
            for g, rows in enumerate(shard.row_groups)
        ][: 64 * n_nodes]
    else:
        groups = [{"shard": -1, "group": n, "rows": 100} for n in range(8 * n_nodes)]
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    read = ray.data.from_items(groups, override_num_blocks=min(len(groups), 8 * n_nodes)).map_batches(
        _read_groups,
        fn_args=(corpus,),
        num_cpus=0.25,
        compute=ray.data.TaskPoolStrategy(size=n_nodes),
        batch_format="numpy",
    )
    what = "Ray Data reads the corpus" if corpus else "Ray Data works"
    try:
        rows = read.take_all()
    except Exception as error:
        return [fail(f"{what}: {_reason(error)}", "the message names the path; check it on that node")]
    done, asked = sum(row["read"] for row in rows), sum(group["rows"] for group in groups)
    if done != asked:
        remedy = "beatray corpus verify names the shard" if corpus else "report it with the output of ray status"
        return [fail(f"{what}, but gave {done} rows of {asked}", remedy)]
    by_node = Counter(row["node"] for row in rows)
    what = f"{what}: {done:,} rows, on {len(by_node)} of {n_nodes} nodes"
    if len(by_node) < n_nodes:
        return [warn(what, "the other nodes were busy, or have fewer than 0.25 CPUs free: see ray status")]
    return [ok(what)]


def _read_groups(batch: dict[str, Any], corpus: str | None) -> dict[str, list[Any]]:
    """Read the named row groups where this runs."""
    here = ray.get_runtime_context().get_node_id()
    if corpus is None:
        time.sleep(0.05)  # long enough that one node cannot do it all
        return {"read": list(batch["rows"]), "node": [here] * len(batch["rows"])}
    store = Store(corpus)
    shards = read_manifest(store).shards
    read = [
        read_row_group(store, shards[shard], group, ["record_id", "signal"]).num_rows
        for shard, group in zip(batch["shard"].tolist(), batch["group"].tolist(), strict=True)
    ]
    return {"read": read, "node": [here] * len(read)}


def _each(members: Sequence[Node], calls: Sequence[Any], what: str) -> tuple[list[Finding], list[Any]]:
    """Wait for one call per node: (a finding for every node that fails, the answers if none did)."""
    deadline = time.monotonic() + PATIENCE_S
    findings, answers = [], []
    for node, call in zip(members, calls, strict=True):
        try:
            answers.append(ray.get(call, timeout=max(deadline - time.monotonic(), 1.0)))
        except ray.exceptions.GetTimeoutError:
            remedy = "look whether a firewall stands between the nodes, and whether the node has resources free"
            findings.append(fail(f"{node.name} {what}: no answer within {PATIENCE_S:.0f} s", remedy))
        except Exception as error:
            findings.append(fail(f"{node.name} {what}: {_reason(error)}", "the message names the cause; fix it there"))
    return findings, answers


def _reason(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    return without_secrets(" ".join(str(cause).split())[:200])
