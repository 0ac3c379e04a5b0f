"""The card of a model folder: what it decides, what it was trained on, its scores, and what it is not for.

After Mitchell et al., "Model Cards for Model Reporting" (FAccT 2019). Contract: `model_card` returns markdown; every
figure comes out of the description (model.json); what is not known is stated as not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from beatray.evaluate.results import percent
from beatray.record import LEADS, WAVE_KINDS

NAMES = {
    "auroc": "AUROC",
    "auprc": "average precision",
    "f1": "F1",
    "accuracy": "accuracy",
    "mae": "mean absolute error",
    "r2": "R squared",
    "dice": "Dice of recordings",
}

WAVE_NAMES = {
    "f1": "F1 of samples",
    "sensitivity": "sensitivity, within 150 ms",
    "ppv": "positive predictive value",
    "onset_sd_ms": "SD of the onset's error, ms",
    "offset_sd_ms": "SD of the offset's error, ms",
}

LIMITS = f"""## Limits

- Not a medical device: nothing here was tested for clinical use.
- It was trained on the recordings named above; how it performs on other devices, populations and labels is not known
  before you measure it. Thresholds and calibration belong to the frequencies of the validation recordings.
- `trained_on.bin` holds the first 8 bytes of the content hash of every recording that trained it or its encoder. It
  also lets the owner of a recording find out that it was among them.
- It reads {", ".join(LEADS)} in this order; leads that were not recorded are zeros."""


def model_card(description: Mapping[str, Any]) -> str:
    """The README.md of a model folder."""
    d, records = description, description["records"]
    front = {"library_name": "beatray", "tags": ["ecg", d["task"], d["encoder"]["name"]]}
    start = f"a pretrained encoder (SHA-256 {d['started_from'][:16]})" if d["started_from"] else "random weights"
    objective = d["objective"]
    seen = records["test_seen"]
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {d['title']}: {d['task']} 12-lead ECGs",
        f"Outputs: {', '.join(d['names'])}. Network: {d['encoder']['name']}, from {start}; "
        f"trained: {objective['trained']}; "
        f"seed {d['seed']}, step {d['made_of']['steps']} of {d['made_of']['run_steps']}.",
        "## What it was trained on\n\n"
        f"{records['train']:,} recordings trained ({percent(objective['fraction'])} of the labelled patients), "
        f"{records['validation']:,} chose the step{_chosen(d)}; sources of the training part: "
        f"{', '.join(f'{name} {count:,}' for name, count in sorted(d['sources'].items()))}. "
        f"Corpus manifest `{d['manifest_hash']}`.",
        *_labels(d),
        _use(d),
        f"## Scores\n\n{_table(d['scores'])}\n\nIntervals of 95 % over resampled patients; "
        f"{records['test']:,} test recordings"
        + (f", {seen:,} more were left out, as its encoder was pretrained on them." if seen else ".")
        + _calibration(d["scores"]),
        LIMITS,
        "## Which recordings it may have seen\n\nSplits are by patient.\n\n```yaml\n"
        f"{yaml.safe_dump(_plain(d['corpus_settings']))}```",
    ]
    return "\n\n".join(parts) + "\n"


def _chosen(d: Mapping[str, Any]) -> str:
    if "thresholds" in d:
        return ", the calibration and the thresholds"
    return " and the calibration" if "calibration" in d else ""


def _labels(d: Mapping[str, Any]) -> list[str]:
    """The table it was trained on, where there was one."""
    table = d["labels"]
    if table is None:
        return []
    made = [f"`{name}` is `{text}`" for name, text in table["conditions"].items()]
    columns = [f"`{name}` ({kind})" for name, kind in table["columns"].items() if name not in table["conditions"]]
    return [
        f"Labels: `{table['table']}` (SHA-256 {table['sha256'][:16]}), of {table['key_kind']}s by `{table['key']}`; "
        f"columns {', '.join(columns) or 'none but conditions'}.{''.join(f' {each}.' for each in made)}"
    ]


def _use(d: Mapping[str, Any]) -> str:
    gives = {
        "multilabel": "probabilities (B, C) and decisions by the thresholds",
        "classes": "probabilities (B, C) and the likeliest class",
        "numbers": "numbers (B, C) in the units of the labels",
        "waves": "onset and offset of every P, QRS and T wave",
    }[d["kind"]]
    code = '    import beatray\n    found = beatray.load_model("THIS FOLDER").predict(x_mv, rate_hz=500)'
    return f"## Use\n\n{code}\n\nx_mv is (12, T) or (B, 12, T) in millivolts; found has {gives}."


def _table(scores: Mapping[str, Any]) -> str:
    lines = ["| score | output | validation | test |", "|---|---|---|---|"]
    for name, title in NAMES.items():
        both = [scores[part] for part in ("validation", "test")]
        each = [part.get("each", {}) for part in both]
        outputs = list(dict.fromkeys(output for part in each for output in part if name in part[output]))
        rows = []
        if any(name in part for part in both):
            rows.append(("all", [part.get(name) for part in both]))
        if len(outputs) > 1:  # errors of several numbers have units of their own, and no common value
            rows += [(output, [part.get(output, {}).get(name) for part in each]) for output in outputs]
        heads = [title] + [""] * len(rows)
        lines += [
            f"| {head} | {output} | {' | '.join(map(_cell, values))} |".replace("|  |", "| |")
            for head, (output, values) in zip(heads, rows, strict=False)
        ]
    for name in WAVE_NAMES if "waves" in scores["test"] else ():
        for kind in WAVE_KINDS:
            found = [scores[part]["waves"].get(f"{name}_{kind.lower()}") for part in ("validation", "test")]
            cells = " | ".join("-" if value is None else f"{value:.3f}" for value in found)
            lines.append(f"| {WAVE_NAMES[name]} | {kind} | {cells} |")
    return "\n".join(lines)


def _cell(score: Mapping[str, float | None] | None) -> str:
    if score is None or score["value"] is None:
        return "-"
    if score["low"] is None or score["high"] is None:
        return f"{score['value']:.3f}"
    return f"{score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})"


def _calibration(scores: Mapping[str, Any]) -> str:
    errors = []
    for part in ("validation", "test"):
        found = scores[part].get("calibration")
        if found and found["error"] is not None:
            errors.append(f"{part} {found['error']:.3f} ({found['error_before']:.3f} before)")
    return f" Expected calibration error: {', '.join(errors)}." if errors else ""


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in content.items()}
