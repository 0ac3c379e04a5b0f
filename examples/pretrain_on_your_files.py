"""Pretrain a small encoder on a folder of recordings without labels, and see whether it knows a recording again.

python examples/pretrain_on_your_files.py WORK                           # recordings that come with beatray
python examples/pretrain_on_your_files.py WORK2 --recordings /data/ward --epochs 160
"""

import argparse
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
from sklearn.preprocessing import normalize

import beatray
from beatray.cli import main as run_beatray
from beatray.corpus.reader import open_corpus

SAMPLE = Path(beatray.__file__).parent / "sample" / "ludb-sample.zip"


def command(*arguments: str) -> None:
    """Run `beatray ...` as a shell would, and stop where it fails."""
    print("\n$ beatray", *arguments, flush=True)
    if run_beatray(list(arguments)) != 0:
        sys.exit(1)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("work", type=Path, help="folder for all that is made")
    options.add_argument("--recordings", type=Path, help="folder of your own recordings")
    options.add_argument("--limit", default="100", help="read at most so many recordings (default: 100)")
    options.add_argument("--epochs", type=int, default=30, help="passes over the corpus (default: 30)")
    given = options.parse_args()

    recordings = given.recordings or given.work / "recordings"
    if given.recordings is None and not recordings.exists():
        zipfile.ZipFile(SAMPLE).extractall(recordings)

    corpus, run = given.work / "files-corpus", given.work / "runs" / "first"
    command("ingest", f"files={recordings}", f"limit={given.limit}", "--out", str(corpus))
    training = (f"train.epochs={given.epochs}", "train.warmup_epochs=1", "train.batch_size=32", "train.workers=1")
    command("pretrain", "recipe=beat_ssl_tiny", f"corpus={corpus}", f"out={run.parent}", f"run={run.name}", *training)

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    print("\nloss at steps", ", ".join(f"{line['step'] + 1}: {line['loss']}" for line in (lines[0], lines[-1])))
    rows = open_corpus(str(corpus)).rows()
    whole = rows.signal_uv[rows.n_samples == 5000] / 1000  # (n, 12, 5000) in mV at 500 Hz
    encoder = beatray.EcgEncoder(str(run))
    first, second = (normalize(encoder.transform(half)) for half in np.split(whole, 2, axis=-1))
    known = np.mean((first @ second.T).argmax(axis=1) == np.arange(len(whole)))
    print(f"of {known:.0%} of {len(whole)} recordings, the first 5 s lie nearest to their own last 5 s")
    print("its scores beside baselines, on labelled recordings that it has not seen: docs/evaluation.md")


if __name__ == "__main__":
    main()
