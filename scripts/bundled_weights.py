"""Make the weights that come with beatray: `beatray-small`, an encoder, and `beatray-waves`, a model made from it.

    python scripts/bundled_weights.py --ptbxl FOLDER [--ptbxl FOLDER ...] --ludb PLACE --work FOLDER

ingests the recordings, pretrains, evaluates on recordings that were left out, trains the segmentation of waves, and
writes platform/beatray/weights/. Every step continues where it was stopped. Data: PTB-XL (folds 9 and 10 left out) and
LUDB (its test part left out). Two cores take about half an hour.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).resolve().parents[1] / "platform" / "beatray" / "weights"
HELD_OUT = ("corpus.validation_folds=[]", "corpus.test_folds=[9,10]")
"""Fold 9 is for choices and figures, fold 10 is never used."""
TESTED = ("corpus.validation_folds=[10]", "corpus.test_folds=[9]")
"""Fold 10 would choose settings of probes; inner validation does so instead, and its recordings are not even read."""
PRETRAINING = (
    "encoder=tiny",
    "encoder.channels=[48,64,128]",
    "objective=beat_ssl",
    "objective.rhythm=none",
    "objective.feature_weight=3.0",
    "train=small",
    "train.workers=1",
    "train.epochs=24",
    "train.warmup_epochs=2",
    "seed=0",
    *HELD_OUT,
)
SEGMENTING = ("task=segment", "labels=waves", "train.workers=1", "seed=0", *HELD_OUT)
EVALUATING = (
    "evaluate.protocols=[linear_probe,frozen_decoder]",
    "evaluate.permutations=0",
    "evaluate.seeds=[0]",
    "evaluate.pooling=stages_beat",
    "evaluate.classify_fractions=[0.1,1.0]",
    "evaluate.segment_fractions=[0.1,1.0]",
    "evaluate.classify_subsample=1.0",
    "evaluate.classify.validation=inner",
    *TESTED,
)
SOURCES = {
    "ptbxl": {
        "title": "PTB-XL",
        "licence": "CC BY 4.0",
        "cite": "Wagner et al., Sci Data 7:154 (2020), https://doi.org/10.13026/kfzx-aw45",
    },
    "ludb": {
        "title": "LUDB",
        "licence": "ODC-By 1.0",
        "cite": "Kalyakulina et al., IEEE Access 8:186181 (2020), https://doi.org/10.13026/eegm-h675",
    },
}


def main(argv: Sequence[str] | None = None) -> int:
    """Do what is not done yet, and write the folders; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--ptbxl", action="append", required=True, help="a folder or archive of PTB-XL; several are one"
    )
    parser.add_argument("--ludb", required=True, help="the folder or archive of LUDB")
    parser.add_argument("--work", required=True, type=Path, help="where corpus, runs and evaluations lie")
    args = parser.parse_args(argv)
    work: Path = args.work.absolute()
    corpus, runs = f"corpus={work / 'corpus'}", f"out={work / 'runs'}"
    sources = [*(f"ptbxl={path}" for path in args.ptbxl), f"ludb={args.ludb}"]
    small, waves = work / "runs" / "small", work / "runs" / "waves"
    beatray("ingest", *sources, "--out", str(work / "corpus"))
    beatray("pretrain", corpus, runs, "run=small", *PRETRAINING)
    if not (work / "evaluation" / "results.json").exists():
        beatray("evaluate", f"encoder={small}", corpus, f"out={work / 'evaluation'}", *EVALUATING)
    beatray("finetune", f"encoder={small}", corpus, runs, "run=waves", *SEGMENTING)
    command = f"python scripts/bundled_weights.py {' '.join(f'--ptbxl PTBXL-{n + 1}' for n in range(len(args.ptbxl)))}"
    write_encoder(small, work / "evaluation", f"{command} --ludb LUDB --work WORK")
    write_model(waves, small, f"{command} --ludb LUDB --work WORK")
    return 0


def beatray(*arguments: str) -> None:
    """Run a command of beatray here; SystemExit where it fails."""
    from beatray.cli import main as run

    print(f"== beatray {' '.join(arguments)}", flush=True)
    if code := run(list(arguments)):
        raise SystemExit(code)


def write_encoder(run: Path, evaluation: Path, command: str) -> None:
    """`beatray-small`: the encoder of the run, its card and its scores."""
    from beatray.evaluate.names import score_name
    from beatray.models.encoder_folder import describe_encoder, encoder_files, export_encoder, load_encoder
    from beatray.storage.store import Store

    description, encoder = describe_encoder(str(run)), load_encoder(str(run))
    scores = json.loads((evaluation / "table.json").read_text())["rows"]
    texts = []
    for row in scores:
        name = score_name(row["task"], row["protocol"], row["fraction"], row["metric"], row["condition"])
        if row["metric"] in ("auroc", "f1") and (row["task"], row["metric"]) != ("classify", "f1"):
            texts.append(
                f"{row['title']}, {name.split('/')[2].replace('_', ' ')}, {row['fraction']:.0%} of the labels: "
                f"{row['metric'].upper()} {row['pretrained'][0]:.3f} (random weights {row['random'][0]:.3f})"
            )
    about = {
        "title": "a small convolutional encoder, pretrained without labels (heartbeats and measured features)",
        "kind": "encoder",
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "data": _data(description["sources"]),
        "scores": texts,
        "use": 'encoder=beatray-small, beatray.load_encoder("beatray-small"), beatray.EcgEncoder("beatray-small")',
        "made_by": command,
        "words": list(PRETRAINING),
    }
    folder = _described("beatray-small", about)
    description["corpus_settings"].pop("path")  # of the machine that made it
    export_encoder(Store(str(folder)), encoder, description, encoder_files(str(run))["trained_on.bin"])


def write_model(run: Path, encoder: Path, command: str) -> None:
    """`beatray-waves`: the model of the run, made from that encoder, its card and its scores."""
    from beatray.models.encoder_folder import describe_encoder
    from beatray.models.model_folder import MODEL_FOLDER, read_model

    model = read_model(str(run))
    test = model.description["scores"]["test"]
    scores = [
        f"LUDB test part ({model.description['records']['test']} recordings), {name}: {value['value']:.3f}"
        f" ({value['low']:.3f} to {value['high']:.3f})"
        for name, value in test.items()
        if isinstance(value, dict) and value.get("value") is not None
    ]
    about = {
        "title": "marks onset, peak and offset of P, QRS and T: beatray-small, trained on cardiologists' marks of "
        f"{model.description['records']['train']} recordings of LUDB",
        "kind": "model",
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "data": _data(describe_encoder(str(encoder))["sources"]),
        "scores": scores,
        "use": 'beatray predict model=beatray-waves files=FOLDER out=OUT, beatray.load_model("beatray-waves")',
        "made_by": command,
        "words": list(SEGMENTING),
    }
    shutil.copytree(run / MODEL_FOLDER, _described("beatray-waves", about) / MODEL_FOLDER)


def _data(sources: dict[str, int]) -> list[dict[str, Any]]:
    return [{**SOURCES[name], "recordings": count} for name, count in sorted(sources.items(), reverse=True)]


def _described(name: str, about: dict[str, Any]) -> Path:
    """The folder of the weights with its card; what was there is gone."""
    folder = WEIGHTS / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(name, about), encoding="utf-8")
    print(f"  {folder}")
    return folder


def card(name: str, about: dict[str, Any]) -> str:
    """README.md of bundled weights, after Mitchell et al., Model Cards for Model Reporting (FAccT 2019)."""
    data = "\n".join(
        f"- {each['title']}: {each['recordings']:,} recordings, {each['licence']}. {each['cite']}"
        for each in about["data"]
    )
    scores = "\n".join(f"- {score}" for score in about["scores"])
    return f"""# {name}

{about["title"][:1].upper()}{about["title"][1:]}. {about["parameters"]:,} parameters.

Use: `{about["use"]}`

## Data

{data}

Left out: folds 9 and 10 of PTB-XL and the test part of LUDB. `trained_on.bin` holds the first 8 bytes of the content
hash of every recording that it was trained on, so that an evaluation on one of them is refused.

## Scores, on recordings that were left out

{scores}

Fold 9 and LUDB were looked at when recipes were chosen, so these figures are a little too good; fold 10 was not.

## Limits

- Not a medical device: it makes no diagnosis, and nothing here was tested for clinical use.
- It was trained on ECGs at rest, of 10 s, from Germany and Russia. How it fares on other devices,
  populations and rare diagnoses is not known before you measure it.
- Recordings are brought to 500 Hz and filtered as the corpus recipe in its description says; beatray does so by itself.
- The licences of the data ask for attribution: keep this card with the weights.

## How it was made

    {about["made_by"]}

with {" ".join(f"`{override}`" for override in about["words"])}.
"""


if __name__ == "__main__":
    sys.exit(main())
