"""Real recordings for the tests: the bundled sample always, the full data sets where `BEATRAY_DATA` names a folder."""

from __future__ import annotations

import os
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import s3_server
from s3_server import S3Server

for name, value in s3_server.KEYS.items():
    os.environ[name] = value  # before any Ray starts, because its workers inherit them
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # some hundred child processes import the package: compile it once
sys.dont_write_bytecode = False
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 would leave its workers next to nothing beside other tests
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process for each start; demo and jobs have it
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: many small tensors on shared cores are faster alone
SOURCES = str(Path(__file__).resolve().parents[1] / "platform")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [SOURCES, os.environ.get("PYTHONPATH")]))  # for child processes


STARTS_RAY = ("tests/distributed/", "tests/chaos/", "tests/accuracy/test_golden_loss.py",
              "tests/hostile/test_ingest_command.py", "tests/unit/test_ray_session.py",
              "tests/unit/test_precision.py", "tests/unit/test_bundled_weights.py")  # fmt: skip
SECOND_ROW = ("tests/distributed/test_demo.py", "tests/distributed/test_doctor_multi_node.py",
              "tests/distributed/test_local_cluster.py")  # fmt: skip
"""Of those, what mostly waits for commands that it starts: it may run beside the others. Jobs of a cluster, and a Ray
in the process of the tests, may not: beside the end of the other row they were lost."""


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests that start a Ray run one after the other, in two rows: the first from the start, beside all tests that need
    none; the second when those are through. Three rows take longer on two cores, and Rays time out."""
    from xdist.scheduler import LoadScopeScheduling

    class RayApart(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith(SECOND_ROW):
                return "ray, second row"
            return "ray" if nodeid.startswith(STARTS_RAY) else nodeid

        def _assign_work_unit(self, node: Any) -> None:
            if "ray" in self.workqueue:
                self.workqueue.move_to_end("ray", last=False)
            if "ray, second row" in self.workqueue:
                self.workqueue.move_to_end("ray, second row")
            super()._assign_work_unit(node)

    return RayApart(config, log)


def pytest_itemcollected(item: pytest.Item) -> None:
    """A test that starts a Ray elsewhere would meet another one at work."""
    if item.get_closest_marker("ray") and not item.nodeid.startswith(STARTS_RAY):
        raise pytest.UsageError(f"{item.nodeid} starts a Ray: add its file to STARTS_RAY in tests/conftest.py")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder named by `BEATRAY_DATA` (ludb/, ptbxl/, misc/); skips the test without it."""
    named = os.environ.get("BEATRAY_DATA")
    if not named:
        pytest.skip("needs the full recordings: set BEATRAY_DATA to the folder with ludb/, ptbxl/ and misc/")
    folder = Path(named)
    assert folder.is_dir(), f"BEATRAY_DATA={named} is not a folder"
    return folder


def _unpack(archive: Path, into: Path) -> None:
    with tarfile.open(archive) as tar:
        tar.extractall(into, filter="data")


@pytest.fixture(scope="session")
def ludb_dir(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LUDB 1.0.1, all 200 records: data/N.hea, N.dat, N.i .. N.v6, ludb.csv."""
    into = tmp_path_factory.mktemp("ludb")
    _unpack(data_dir / "ludb" / "ludb-1.0.1.tar.xz", into)
    return into / "ludb-1.0.1"


@pytest.fixture(scope="session")
def ptbxl_dir(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """434 labelled PTB-XL records at 500 Hz: ptbxl_database.csv, scp_statements.csv, records500/."""
    into = tmp_path_factory.mktemp("ptbxl")
    _unpack(data_dir / "ptbxl" / "ptbxl-500hz-folds1-9.tar.xz", into)
    return into / "ptbxl"


@pytest.fixture(scope="session")
def ptbxl_100hz_dir(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 434 PTB-XL records as published at 100 Hz: records100/."""
    into = tmp_path_factory.mktemp("ptbxl100")
    _unpack(data_dir / "ptbxl" / "ptbxl-100hz-folds1-9.tar.xz", into)
    return into / "ptbxl"


@pytest.fixture(scope="session")
def mitdb_dir(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three MIT-BIH Arrhythmia records (format 212) with beat annotations."""
    into = tmp_path_factory.mktemp("mitdb")
    _unpack(data_dir / "misc" / "mitdb" / "mitdb_dev.tar.xz", into)
    return into / "mitdb_dev"


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One small local Ray for the whole test session; commands inside join it."""
    from beatray.ray_session import RaySettings, session

    with session(RaySettings(cpus=4, object_store_mb=256)):
        yield


@pytest.fixture(scope="session")
def sample_files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of `sample_corpus`, for tests that only read it: one row makes it, with a Ray, for both."""
    from filelock import FileLock

    from beatray.ingest.convert import ingest
    from beatray.ingest.plan import SAMPLE, IngestSettings

    base = tmp_path_factory.getbasetemp()  # of this row, below that of the session, where there are rows
    out = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "sample-corpus"
    with FileLock(f"{out}.lock"):
        if not (out / "manifest-0.json").exists():  # written last
            request.getfixturevalue("local_ray")
            sources = {name: str(SAMPLE / f"{name}-sample.zip") for name in ("ludb", "ptbxl")}
            ingest(IngestSettings(sources, str(out), items_per_shard=16, limit=60))
    return str(out)


@pytest.fixture(scope="session")
def sample_corpus(local_ray: None, sample_files: str) -> str:
    """A corpus of 60 bundled recordings of each source, in small shards, through the real ingest; and a Ray."""
    return sample_files


@pytest.fixture(scope="session")
def on_two_workers(sample_corpus: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run `w2`: three epochs on two workers of Ray Train, undisturbed."""
    from pretraining import start

    out = tmp_path_factory.mktemp("runs")
    assert start(sample_corpus, out, "w2", "train.workers=2").finished
    return out


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A real S3 server on loopback for the whole test session."""
    server = s3_server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Small networks are slower on many threads, and the number of threads moves the last bits of a sum."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_address_stays() -> Iterator[None]:
    """A job sets RAY_ADDRESS=auto for its process: in this one, a later test would join any Ray of the machine."""
    before = os.environ.get("RAY_ADDRESS")
    yield
    if before is None:
        os.environ.pop("RAY_ADDRESS", None)
