"""The parser of the command line: every command with its options and help. It imports nothing that takes time."""

from __future__ import annotations

import argparse

KEYS = "settings as dotted overrides, for example train.workers=8"


def parser() -> argparse.ArgumentParser:
    """All commands with their help."""
    top = argparse.ArgumentParser(
        prog="beatray",
        description="Self-supervised pretraining on clinical 12-lead ECGs, from recordings to an evaluated encoder, "
        "and from there to a model that reads ECGs.",
    )
    top.add_argument("--version", action="store_true", help="print the version and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="the whole main job on the bundled real recordings",
        description="Ingest the bundled recordings, pretrain, evaluate on both tasks, track, report: in minutes.",
    )
    demo.add_argument("--out", help="folder for everything it makes (default: beatray-demo)")
    demo.add_argument("--overwrite", action="store_true", help="start anew: delete what an earlier demo made there")
    _overrides_of(demo)

    ingest = commands.add_parser(
        "ingest",
        help="recordings into a corpus",
        description="Read recordings (a folder, zip or tar per source) into a verified Parquet corpus. "
        "Sources: ptbxl, ludb, cinc, mimic, code15, ptb, incart, zzu, cpsc, wfdb (a plain folder), arrays (.npy, .npz, "
        "Parquet and a recordings.yaml), files (a mixture of DICOM, SCP-ECG, HL7 aECG, EDF, WFDB and the XML of "
        "Philips, Schiller and MUSE). Interrupted, it continues; new recordings are added. "
        "Example: beatray ingest ptbxl=/data/ptb-xl ludb=/data/ludb.zip --out /data/corpus. "
        "A source at several locations is given once for each (ptbxl=/data/a ptbxl=/data/b): a recording "
        "that both list is read once, from the first that has its file. "
        "beatray ingest explain PATH [MEMBER] shows check by check what the reader finds in one file, and what to do.",
    )
    found_by = "detector=beatray|neurokit|neurokit+dwt|beatray+prominence|beatray+dwt"
    measured_by = f"{found_by} quality=beatray|beatray+neurokit hrv=none|neurokit"
    keys = f"limit= items_per_shard= {measured_by} retry_refused=true cluster.cpus="
    ingest.add_argument("overrides", nargs="*", metavar="SOURCE=PATH|key=value", help=f"sources, and settings: {keys}")
    ingest.add_argument("--out", help="the corpus folder (default: corpus)")
    ingest.add_argument("--overwrite", action="store_true", help="delete the corpus there first, nothing else")
    ingest.add_argument("--id-key-file", metavar="PATH", help="secret with which all patient ids are hashed")
    ingest.add_argument("--salt-file", help=argparse.SUPPRESS)  # what it was called before 0.2
    ingest.add_argument("--dry-run", action="store_true", help="show what would be read, write nothing")
    ingest.add_argument("--print-config", action="store_true", help="print the resolved settings and exit")

    corpus = commands.add_parser(
        "corpus",
        help="look into a corpus: show, refused, verify, splits",
        description="show: counts, hours, refusals by reason. refused: every refused recording and why. verify: every "
        "byte against the manifest. splits: what may be trained on, by the policy that pretrain would have with the "
        "same settings. Example: beatray corpus splits /data/corpus corpus.test_folds=[8,9]",
    )
    corpus.add_argument("action", choices=("show", "refused", "verify", "splits"))
    corpus.add_argument("path", metavar="CORPUS", help="folder or URI of the corpus")
    corpus.add_argument("overrides", nargs="*", metavar="corpus.KEY=VALUE", help="with splits: the policy")
    corpus.add_argument("--json", action="store_true", help="print JSON")
    corpus.add_argument("--html", metavar="FILE", help="with show: write a page with an example ECG for each flag")

    labels = commands.add_parser(
        "labels",
        help="what is understood of a table of your own labels, and what is odd about it",
        description="check: read a table (csv, tsv, parquet) against a corpus: keys that match, what each column is, "
        "how often each class is there by split, and what looks wrong. labels.KEY=VALUE sets what cannot be inferred: "
        "key, key_kind, source, columns, types.COLUMN, separator, unknown, targets.NAME, patient, time, "
        "window, time_format, unmatched, id_key_file, encoding. "
        "Example: beatray labels check labels.csv corpus=/data/corpus 'labels.targets.low=lvef < 40'",
    )
    labels.add_argument("action", choices=("check",))
    labels.add_argument("overrides", nargs="*", metavar="TABLE | key=value", help="the table, corpus=, labels.KEY=")
    labels.add_argument("--json", metavar="FILE", help="write all of it there")

    pretrain = commands.add_parser(
        "pretrain",
        help="train an encoder on a corpus",
        description="Pretrain on a corpus with Ray Train; the same command continues an interrupted run. "
        "Overrides: corpus= out= run= seed= recipe= objective= encoder= train.workers= train.epochs= ...",
    )
    _overrides_of(pretrain)

    finetune = commands.add_parser(
        "finetune",
        help="train an encoder on labels: classify, regress or segment; leaves a model",
        description="Train a head on an encoder, or both, on the labels of a corpus or of your own table, with Ray "
        "Train; the same command continues an interrupted run. The best by validation becomes a model folder with "
        "thresholds, calibration, scores and a card. Overrides: encoder=PATH|random corpus= "
        "task=classify|regress|segment labels=superdiagnostic|age|waves|...|TABLE.csv labels.KEY= "
        "trained=head|last|all fraction= layer_decay= class_weights= augment.KEY= out= run= seed= train.KEY= ... "
        "Example: beatray finetune encoder=runs/first corpus=/data/corpus labels=mine.csv run=mine",
    )
    _overrides_of(finetune)

    sweep = commands.add_parser(
        "sweep",
        help="many pretraining runs over a space; show their ranking",
        description="Pretrain over a space of settings with Ray Tune: grid, random draws, draws with early stopping "
        "(asha) or a population that learns from its best (pbt); sweep=ablation is the paper's table, and "
        "sweep.evaluate=true tests every encoder. The same command continues after a kill; a failed trial is tried "
        "again. Overrides: sweep=NAME corpus= out= run= sweep.num_samples= sweep.space.KEY=[VALUE,VALUE] and all of "
        "pretrain. beatray sweep show FOLDER [--json] prints the ranking, also while the sweep runs.",
    )
    _overrides_of(sweep)
    sweep.add_argument("--resume", action="store_true", help="there must be a sweep in out/run to go on with")
    sweep.add_argument("--json", action="store_true", help="show: print JSON")

    report = commands.add_parser(
        "report",
        help="the report of a sweep or a run: tables and pictures in one HTML",
        description="Write report.html, table.csv, table.md, table.tex, scores.csv and costs.csv into report/ of the "
        "sweep's folder and into its MLflow run. The sweep must have evaluated its trials, as sweep=ablation does "
        "(sweep.evaluate=true). Of a single run: report.html, with RUN/evaluation where it has been evaluated. "
        "Example: beatray report runs/ablation",
    )
    report.add_argument("parent", metavar="PLACE", help="folder of the sweep or run, or id of a sweep's MLflow run")
    report.add_argument("--corpus", metavar="PATH", help="where the corpus lies now, if it has moved")
    report.add_argument("--results", metavar="PATH", help="of a single run: results.json of beatray evaluate")
    report.add_argument("--against", metavar="METHOD", help="test all others against this one, instead of the first")

    evaluate = commands.add_parser(
        "evaluate",
        help="evaluate an encoder on both tasks, beside baselines",
        description="PTB-XL superclasses and LUDB segmentation, beside random weights, training from scratch and "
        "hand-made features. Overrides: encoder=PATH|random corpus= out= task=classify|segment|all evaluate.KEY= ...",
    )
    _overrides_of(evaluate)

    compare = commands.add_parser(
        "compare",
        help="is one encoder better than another? paired tests on results of evaluate",
        description="Friedman, then Wilcoxon's signed-rank test between every two methods, with Bonferroni and Holm, "
        "effect sizes, and a refusal where the runs are too few to show anything. RESULTS is a results.json, its "
        "folder, or NAME=RESULTS; a name given several times pools pretraining seeds or splits. "
        "Example: beatray compare hard=eval/h0 hard=eval/h1 soft=eval/s0 soft=eval/s1",
    )
    compare.add_argument("results", nargs="+", metavar="RESULTS", help="at least two, or one and --with")
    compare.add_argument(
        "--with", dest="variants", metavar="VARIANTS", help="compare these too: random,features,encoder+features"
    )
    compare.add_argument("--alpha", type=float, default=0.05, help="level of significance (default: 0.05)")
    compare.add_argument("--json", action="store_true", help="print JSON")

    embed = commands.add_parser(
        "embed",
        help="a vector for every recording or heartbeat of a corpus",
        description="Run an encoder over a corpus with Ray Data and write its vectors as Parquet; the same command "
        "continues after a kill and adds what is new in the corpus. Overrides: encoder=PATH corpus= out= "
        "level=recording|beat|both embed.workers= embed.KEY= ... Python reads them: beatray.read_embeddings(out)",
    )
    _overrides_of(embed)
    predict = commands.add_parser(
        "predict",
        help="a model of finetune over new recordings: a corpus, a folder, a zip",
        description="Run a model over a corpus, or straight over files of any readable format, with Ray Data; nothing "
        "is stored but the answers: a table (Parquet, or CSV by the name of out), refused files with reasons, waves "
        "also as WFDB annotations. The same command continues after a kill. Overrides: model=PATH[,PATH] (several: an "
        "ensemble) corpus=PATH | files=PATH out=NAME.parquet|NAME.csv|FOLDER format= source= overwrite= "
        "predict.workers= predict.KEY= ... Example: beatray predict model=runs/dx files=/data/ward out=ward.csv",
    )
    _overrides_of(predict)
    predict.add_argument(
        "--show",
        type=int,
        default=0,
        metavar="N",
        help="write a page of N recordings: the ECG, its waves or probabilities, where the model looks "
        "(needs beatray[explain])",
    )
    export = commands.add_parser(
        "export",
        help="an encoder or a model to hand to others: safetensors, torch.export, ONNX and a model card",
        description="Write a folder with the weights, a model card (data, licences, recipe, settings, scores, limits) "
        "and programs for torch.export and ONNX, checked against the encoder on real recordings. Of a run of finetune "
        "it is the whole model, calibration included; RUN/encoder is its encoder alone. "
        "Example: beatray export runs/first --out first-encoder --results runs/first/evaluation",
    )
    export.add_argument("encoder", metavar="ENCODER", help="a run folder, or its encoder/ or model/ folder")
    export.add_argument("--out", required=True, metavar="FOLDER", help="the folder to write; it must not exist")
    export.add_argument("--results", metavar="FILE", help="results.json of beatray evaluate, for the card")
    export.add_argument("--no-onnx", action="store_true", help="without ONNX and the libraries it needs")

    beats = commands.add_parser(
        "beats",
        help="train a classifier of heartbeats, for objective.beat_positives=aami",
        description="train: learn the AAMI classes N, S, V, F, Q from the .atr annotations of WFDB recordings "
        "(MIT-BIH, INCART), report how well held-out beats are classified. "
        "Example: beatray beats train /data/mitdb --out beats-mitdb",
    )
    beats.add_argument("action", choices=("train",))
    beats.add_argument("path", metavar="PATH", help="folder, zip or tar of WFDB recordings with .atr files")
    beats.add_argument("--out", required=True, metavar="FOLDER", help="the folder to write; it must not exist")
    beats.add_argument("--leads", default="II", help="one or two of the twelve, comma between (default: II)")
    beats.add_argument("--epochs", type=int, help="passes over the beats (default: 12)")
    beats.add_argument("--seed", type=int, default=0)

    doctor = commands.add_parser(
        "doctor",
        help="would a run work here? each line ok, warn or fail, with the remedy",
        description="Check versions, devices, CPUs and memory against the plan, ports, Ray's token, storage and the "
        "tracking server, for the overrides of `beatray pretrain` or, after `finetune`, of `beatray finetune`. "
        "Example: beatray doctor corpus=/data/corpus "
        "out=/shared/runs train.workers=8 --multi-node",
    )
    doctor.add_argument("overrides", nargs="*", metavar="key=value", help=KEYS)
    doctor.add_argument("--multi-node", action="store_true", help="try collectives, storage and Ray Data on all nodes")
    doctor.add_argument("--seconds", type=float, default=20.0, help="how long the collectives go on (default: 20)")
    doctor.add_argument("--json", action="store_true", help="print JSON")

    bench = commands.add_parser(
        "bench",
        help="what this machine does with a run, beside a plain PyTorch loop, in two minutes",
        description="Measure step, feed, wait for data and share of peak, turn by turn with a plain PyTorch loop over "
        "a DataLoader, on one rank; print a table. Overrides: those of pretrain; without corpus= bundled recordings "
        "are written again and again. Example: beatray bench recipe=beat_ssl train.precision=bf16 train.compile=step "
        "--json bench.json",
    )
    _overrides_of(bench)
    bench.add_argument("--seconds", type=float, default=120.0, help="about how long, in all (default: 120)")
    bench.add_argument("--json", metavar="FILE", help="write all of it there")

    models = commands.add_parser(
        "models",
        help="the pretrained weights that come with beatray",
        description="List them with their data, licence, size and scores; with a NAME, print its card. A name stands "
        "wherever a path of an encoder or a model does: encoder=NAME, beatray.load_encoder(NAME).",
    )
    models.add_argument("name", nargs="?", metavar="NAME", help="print the card of these weights")

    track = commands.add_parser(
        "track",
        help="send to MLflow what an outage kept back",
        description="sync: send what MLflow does not have of a run yet, from its folder, without training; nothing is "
        "stored twice. Example: beatray track sync runs/first",
    )
    track.add_argument("action", choices=("sync",))
    track.add_argument("folders", nargs="+", metavar="RUN_FOLDER", help="folders with metrics.jsonl and tracking.json")
    return top


def _overrides_of(command: argparse.ArgumentParser) -> None:
    command.add_argument("overrides", nargs="*", metavar="key=value", help=KEYS)
    command.add_argument("--print-config", action="store_true", help="print the resolved settings and exit")
