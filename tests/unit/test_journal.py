"""The journal of a run: cut back on resume, followed while it is written, robust to a torn last line."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

from beatray.track.journal import Journal, Tail, read_lines


def test_reopen_drops_replayed_steps(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.reopen(0)
    for step in range(10):
        journal.write({"step": step, "loss": 1.0 / (step + 1)})
    journal.close()
    journal.reopen(6)
    journal.write({"step": 6, "loss": 7.0})
    journal.close()
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == list(range(7))
    assert read_lines(tmp_path / "metrics.jsonl")[-1]["loss"] == 7.0


def test_a_torn_last_line_is_left_out_and_mended(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2, "lo')
    assert [line["step"] for line in read_lines(path)] == [0, 1]
    journal = Journal(path)
    journal.reopen(2)
    journal.write({"step": 2})
    journal.close()
    assert [line["step"] for line in read_lines(path)] == [0, 1, 2]


def test_a_full_disk_loses_no_line_and_leaves_no_torn_one(tmp_path: Path) -> None:
    """In a child whose files may not grow beyond 100 bytes for a while."""
    path = tmp_path / "metrics.jsonl"
    child = os.fork()
    if child == 0:
        journal = Journal(path)
        journal.reopen(0)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        failures = 0
        for step in range(20):
            try:
                journal.write({"step": step, "loss": 0.5})
            except OSError:
                failures += 1
            assert path.read_bytes()[-1:] in (b"", b"\n")
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        journal.write({"step": 20, "loss": 0.5})
        journal.close()
        os._exit(0 if failures == 16 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert [line["step"] for line in read_lines(path)] == list(range(21))


def test_tail_gives_whole_lines_once_and_starts_again_after_a_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.fresh() == ([], False)
    with path.open("a") as file:
        file.write('{"step": 0}\n{"ste')
        file.flush()
        assert tail.fresh() == ([{"step": 0}], True)
        file.write('p": 1}\n')
    assert tail.fresh() == ([{"step": 1}], False)
    assert tail.fresh() == ([], False)
    journal = Journal(path)
    journal.reopen(1)
    journal.write({"step": 1, "again": 1})
    journal.close()
    assert tail.fresh() == ([{"step": 0}, {"step": 1, "again": 1}], True)


def test_figures_of_an_older_version_go_on_under_the_names_of_today(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    older = {"step": 0, "loss": 3.0, "rhythm_loss": 2.0, "beat_spread": 0.5, "rhythm_raw_similarity_q05": None}
    older |= {"beat_own_pair_mass": 0.1, "feature_explained": 0.2, "beats": 3.0, "beat_time_ms": 1, "data_wait_s": 0.0}
    today = {"step": 0, "loss": 3.0, "record/loss": 2.0, "beat/embedding_std": 0.5, "record/raw_similarity_q05": None}
    today |= {"beat/positive_mass": 0.1, "feature/explained": 0.2, "beats": 3.0, "beat_time_ms": 1, "data_wait_s": 0.0}
    path.write_text(json.dumps(older) + "\n")
    assert read_lines(path) == [today]
    journal = Journal(path)
    journal.reopen(1)
    journal.close()
    assert [json.loads(text) for text in path.read_text().splitlines()] == [today]
