"""Two ways to pretrain, side by side: the same recordings, network and epochs, scored on held-out patients.

python examples/compare_two_methods.py WORK
python examples/compare_two_methods.py WORK --methods byol vicreg cpc --epochs 60 --seeds 0 1 2
"""

import argparse
import csv
import sys
from pathlib import Path

import beatray
from beatray.cli import main as run_beatray

SAMPLE = Path(beatray.__file__).parent / "sample"
SCORE = "eval/classify/linear_probe/100pct/auroc"


def command(*arguments: str) -> None:
    """Run `beatray ...` as a shell would, and stop where it fails."""
    print("\n$ beatray", *arguments, flush=True)
    if run_beatray(list(arguments)) != 0:
        sys.exit(1)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("work", type=Path, help="folder for all that is made")
    options.add_argument("--methods", nargs="+", default=["simclr", "vicreg"], help="recipes (default: simclr vicreg)")
    options.add_argument("--epochs", default="10", help="of each pretraining (default: 10)")
    options.add_argument("--seeds", nargs="+", default=["0"], help="each repeats all methods (default: 0)")
    given = options.parse_args()

    corpus, sweep = given.work / "corpus", given.work / "runs" / "two-methods"
    sources = [f"{name}={SAMPLE}/{name}-sample.zip" for name in ("ptbxl", "ludb")]
    command("ingest", *sources, "--out", str(corpus))
    what = ("sweep=methods", f"sweep.only=[{','.join(given.methods)}]", f"sweep.space.seed=[{','.join(given.seeds)}]")
    training = (f"train.epochs={given.epochs}", "train.warmup_epochs=1", "train.workers=1", "sweep.time_steps=false")
    folds = ("corpus.validation_folds=[8]", "corpus.test_folds=[9]", f"sweep.metric={SCORE}", "sweep.mode=max")
    reading = ("evaluate.protocols=[classify/linear_probe]", "evaluate.classify_fractions=[1.0]", "evaluate.seeds=[0]")
    clean = ("evaluate.robustness.noise_levels=[]", "evaluate.robustness.leads=[]", "evaluate.workers=1")
    paths = (f"corpus={corpus}", f"out={sweep.parent}", f"run={sweep.name}")
    command("sweep", *what, *paths, *training, *folds, *reading, *clean)
    command("report", str(sweep))

    with (sweep / "report" / "scores.csv").open() as file:
        scores = [line for line in csv.DictReader(file) if line["score"] == SCORE]
    print("\nAUROC of the PTB-XL superclasses by a linear probe, on held-out patients:")
    for line in scores:
        print("{method}: {value} (random weights {random}, measured features {features})".format(**line))
    print(f"one seed on so few recordings decides nothing; the report says how sure it is: {sweep}/report/report.html")


if __name__ == "__main__":
    main()
