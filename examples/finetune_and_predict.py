"""Labels of your own, a model that learns them, and its answers on files that it has never seen.

python examples/finetune_and_predict.py WORK                     # bundled recordings; the label is: older than 65
python examples/finetune_and_predict.py WORK2 --files /data/ward  # answers on your own files
"""

import argparse
import sys
import zipfile
from pathlib import Path

import pandas as pd

import beatray
from beatray.cli import main as run_beatray

SAMPLE = Path(beatray.__file__).parent / "sample"


def command(*arguments: str) -> None:
    """Run `beatray ...` as a shell would, and stop where it fails."""
    print("\n$ beatray", *arguments, flush=True)
    if run_beatray(list(arguments)) != 0:
        sys.exit(1)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("work", type=Path, help="folder for all that is made")
    options.add_argument("--files", type=Path, help="folder of recordings to answer on")
    options.add_argument("--epochs", default="20", help="at most so many passes over the labels (default: 20)")
    options.add_argument("--encoder", default="beatray-small", help="a run of yours instead of the bundled weights")
    given = options.parse_args()

    corpus, runs, labels, answers = (given.work / name for name in ("corpus", "runs", "labels.csv", "answers.csv"))
    sources = [f"{name}={SAMPLE}/{name}-sample.zip" for name in ("ptbxl", "ludb")]
    command("ingest", *sources, "--out", str(corpus))

    # A table of your own has a column of recordings (or patients), and labels in the others.
    with zipfile.ZipFile(SAMPLE / "ptbxl-sample.zip") as archive, archive.open("ptbxl_database.csv") as file:
        people = pd.read_csv(file, usecols=["ecg_id", "age"])
    over_65 = people.age.gt(65).where(people.age.notna())  # unknown is not no
    pd.DataFrame({"exam": "ptbxl/" + people.ecg_id.astype(str), "over_65": over_65}).to_csv(labels, index=False)

    held_out = ("corpus.validation_folds=[]", "corpus.test_folds=[9,10]")  # as beatray-small was pretrained
    command("labels", "check", str(labels), f"corpus={corpus}", *held_out)
    training = ("trained=head", f"train.epochs={given.epochs}", "train.workers=1")
    what = (f"encoder={given.encoder}", f"corpus={corpus}", f"labels={labels}", f"out={runs}", "run=over-65")
    command("finetune", *what, *held_out, *training)

    scores = beatray.load_model(str(runs / "over-65")).description["scores"]["test"]
    print("\nAUROC on patients of the test folds: {value:.2f} ({low:.2f} to {high:.2f})".format(**scores["auroc"]))
    new = (f"files={given.files}",) if given.files else (f"files={SAMPLE}/ludb-sample.zip", "source=ludb")
    command("predict", f"model={runs / 'over-65'}", *new, f"out={answers}")
    print(f"\nthe first answers of {answers}:\n", pd.read_csv(answers).head().to_string(index=False), sep="")


if __name__ == "__main__":
    main()
