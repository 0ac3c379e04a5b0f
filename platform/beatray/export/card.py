"""The model card: what an exported encoder is, what it was made of, its scores, and what it is not for.

After Mitchell et al., "Model Cards for Model Reporting" (FAccT 2019); the front matter is what model hubs read. Every
figure comes out of the encoder's own description, of a results.json of `beatray evaluate`, or of the export's proof.

Contract: `model_card` returns markdown; what is not known is stated as not known, never left to be guessed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml

from beatray.evaluate.notes import TASK_TITLES
from beatray.evaluate.recordings import count_text
from beatray.evaluate.results import METRICS, percent
from beatray.evaluate.table import METRIC_NAMES, PROTOCOL_NAMES
from beatray.export.programs import INPUT, INSTALL, OUTPUTS, TOLERANCE, ExportError, Programs
from beatray.ingest.sources.registry import SOURCES
from beatray.preprocess import CLIP_MV, CUTOFF_HZ
from beatray.record import LEADS, RATE_HZ, WINDOW_SAMPLES

UNKNOWN = "not recorded"
OF_WEIGHTS = ("pretrained", "encoder_features")
"""Variants of an evaluation that read the encoder's own weights."""

LICENCES = (
    "Recordings are windows of up to 10 s. The licences of the sources ask for attribution where they say CC BY or "
    "ODC-By; whether and how they bind weights made from them is for you to settle."
)


def _use(learned: str) -> str:
    """What it is for and what not; `learned` describes how it learned."""
    return f"""## Intended use

Research on 12-lead ECGs: vectors of recordings and heartbeats as input of a classifier, a segmentation, a search or a
cluster analysis that is trained and tested on your own labelled data.

## Limits

- Not a medical device: it makes no diagnosis, and nothing here was tested for clinical use.
- It was {learned} on the recordings named above; devices, populations, ages and diagnoses that are rare
  there are rare to it. How it fares on yours is not known before you measure it.
- Pretraining left out the test recordings that the settings above name, unless `pretrain_sees_test` is true. Other data
  sets may hold copies of recordings it was trained on; `trained_on.bin` holds the first 8 bytes of each training
  recording's content hash to find them. It also lets the owner of a recording find out that it was among them.
- It reads {", ".join(LEADS)} in this order. Leads that were not recorded are zeros."""


def model_card(
    description: Mapping[str, Any],
    programs: Programs,
    parameters: int,
    results: Mapping[str, Any] | None = None,
    proven_on: str = "",
    sha256: str = "",
) -> str:
    """The README.md of an exported encoder; `results` is a parsed results.json, `sha256` that of the encoder.

    Raises ExportError for results of other encoders alone.
    """
    name = str(description["name"])
    objective = dict(description.get("objective") or {})
    method = objective.get("name", UNKNOWN)
    front = {"library_name": "beatray", "tags": ["ecg", "self-supervised", str(method), name]}
    steps, seed = (description.get(key, UNKNOWN) for key in ("steps", "seed"))
    shape = "(batch, 12, samples)" if programs.any_length else f"(batch, 12, {WINDOW_SAMPLES})"
    if programs.any_length and programs.longest is not None:
        shape = f"(batch, 12, samples <= {programs.longest})"
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {name}, pretrained with {method} on 12-lead ECGs",
        f"{parameters:,} parameters, steps: {steps}, seed: {seed}.",
        _data(description),
        _recipe(description),
        _usage(shape, programs, proven_on),
        _metrics(results, sha256),
        _use("trained on labels, last of all," if description.get("supervised") else "pretrained without labels"),
        "## Settings\n\n"
        + _block({"encoder": {"name": name, **dict(description.get("settings") or {})}, "objective": objective}),
    ]
    return "\n\n".join(parts) + "\n"


def _data(description: Mapping[str, Any]) -> str:
    lines = ["## Data it was pretrained on", ""]
    sources = description.get("sources")
    if sources:
        lines += ["| source | recordings | licence of the source |", "|---|---|---|"]
        for source, count in sorted(sources.items()):
            licence = SOURCES[source].licence if source in SOURCES else UNKNOWN
            lines.append(f"| {source} | {count:,} | {licence} |")
        lines += ["", LICENCES]
    else:
        lines.append(f"Sources and their licences: {UNKNOWN} in this encoder (it was trained by an earlier version).")
    if description.get("started_from"):
        before = description.get("earlier_sources")
        named = ", ".join(f"{source} {count:,}" for source, count in sorted(before.items())) if before else UNKNOWN
        lines += [
            "",
            f"Its training went on from an encoder (SHA-256 {description['started_from'][:16]}) that was trained on "
            f"recordings of: {named}. Their licences hold, too.",
        ]
    lines += ["", f"Corpus manifest: `{description.get('manifest_hash') or UNKNOWN}`."]
    policy = {key: value for key, value in dict(description.get("corpus_settings") or {}).items() if key != "path"}
    if policy:
        lines += ["", "Which recordings it may have seen (splits are by patient):", "", _block(policy)]
    return "\n".join(lines)


def _recipe(description: Mapping[str, Any]) -> str:
    recipe = {
        k: v for k, v in dict(description.get("recipe") or {}).items() if k not in ("beat_features", "record_features")
    }
    return "## How recordings became input\n\n" + (_block(recipe) if recipe else UNKNOWN)


def _usage(shape: str, programs: Programs, proven_on: str) -> str:
    files = "`model.pt2` (torch.export)" + (" and `model.onnx`" if programs.onnx is not None else "")
    proofs = "; ".join(f"{name} {value:.1e}" for name, value in programs.difference.items())
    return f"""## Use

With beatray, which prepares recordings itself:

    import beatray
    vectors = beatray.EcgEncoder("THIS FOLDER").transform(x_mv, rate_hz=500)

Without it, {files} take `{INPUT}` {shape} float32 and give `{OUTPUTS[0]}` (batch, D) and `{OUTPUTS[1]}` (batch, C,
positions). `{INPUT}` is in millivolts at {RATE_HZ} Hz, leads {" ".join(LEADS)}, after a zero-phase high-pass with gain
1 / (1 + (f_c / f)^4), f_c = {CUTOFF_HZ} Hz, and clipping to +-{CLIP_MV:g} mV. All samples given count: do not pad.

Verified at export on {proven_on}: largest difference from the encoder {proofs} (allowed: {TOLERANCE:g} of 1 + the
value). A .pt2 file can hold code: open only those you trust. safetensors and ONNX cannot. ONNX export needs
`{INSTALL}`."""


def _metrics(results: Mapping[str, Any] | None, sha256: str) -> str:
    head = "## Scores\n\n"
    if results is None:
        return head + "Not evaluated: no results were given to this export."
    runs = _of_encoder(results, sha256)
    cells: dict[tuple[str, str, float, str, str], list[float]] = {}
    for run in runs:
        for metric in METRICS[run["task"]]:
            value = run["metrics"].get(metric)
            if value is not None and math.isfinite(value):
                cells.setdefault((run["task"], run["protocol"], run["fraction"], metric, run["variant"]), []).append(
                    value
                )
    lines = [
        "| task | protocol | labels | score | this encoder | random weights | measured features | both |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task, protocol, fraction, metric in dict.fromkeys(key[:4] for key in cells):
        variants = [
            _mean(cells.get((task, protocol, fraction, metric, variant), []))
            for variant in ("pretrained", "random", "features", "encoder_features")
        ]
        what = (
            _title(results, task),
            PROTOCOL_NAMES[task, protocol],
            percent(fraction),
            METRIC_NAMES[metric],
            *variants,
        )
        lines.append("| " + " | ".join(what) + " |")
    tests = ", ".join(
        f"{count_text(part['test_ids'], 'test')} of {_title(results, t)}" for t, part in results["tasks"].items()
    )
    return head + "\n".join(lines) + f"\n\nMean +- SD over the seeds of one evaluation, on {tests}; as given at export."


def _of_encoder(results: Mapping[str, Any], sha256: str) -> list[Mapping[str, Any]]:
    """The runs on recordings as they are: of this encoder, and of what stands beside it. Raises ExportError."""
    runs = [run for run in results["runs"] if run.get("condition", "clean") == "clean"]
    hashes = results.get("encoder_sha256") or {}
    of_weights = [run for run in runs if run["variant"] in OF_WEIGHTS]
    labels = {str(run.get("encoder", "")) for run in of_weights}
    mine = {label for label, known in hashes.items() if known == sha256} if hashes else labels
    if (hashes and not mine) or len(mine) > 1:
        raise ExportError(
            f"the results are of other encoders ({', '.join(sorted(labels))}): evaluate this one, or omit --results"
        )
    own = [run for run in of_weights if str(run.get("encoder", "")) in mine]
    networks = {run.get("architecture") for run in own}
    beside = [run for run in runs if run["variant"] not in OF_WEIGHTS]
    return own + [run for run in beside if run["variant"] != "random" or run.get("architecture") in networks]


def _title(results: Mapping[str, Any], task: str) -> str:
    """What was tested, as the results call it."""
    return str(results["tasks"].get(task, {}).get("title") or TASK_TITLES[task])


def _mean(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" +- {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def _block(content: Mapping[str, Any]) -> str:
    return "```yaml\n" + yaml.safe_dump(json.loads(json.dumps(content)), sort_keys=False) + "```"
