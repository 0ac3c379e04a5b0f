"""Losses against numbers that other people's public code gave on small inputs: tests/data/public_values.

Each file names the repository, commit and file, its licence and settings, and where our loss differs by convention. The
inputs are in the files, so nothing here runs or needs that code. Both are tested: the slow references and the losses
that train.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import clocs_oracle
import ecg_fm_oracle
import mae_oracle
import numpy as np
import pytest
import simdino_oracle
import swav_oracle
import torch
import ts2vec_oracle
import vicreg_oracle
from numpy.typing import NDArray
from torch import Tensor

from beatray.objectives import simdino, swav
from beatray.objectives.contrast import soft_contrastive_loss, unit_rows
from beatray.objectives.masked_contrast import masked_contrast
from beatray.objectives.pairs import nt_xent_term
from beatray.objectives.patient_contrast import patient_contrast
from beatray.objectives.product_quantiser import ProductQuantiser, diversity, perplexity, straight_through
from beatray.objectives.ts2vec_loss import ts2vec_loss
from beatray.objectives.vicreg import vicreg_terms

Floats = NDArray[np.float64]

FOLDER = Path(__file__).parents[1] / "data" / "public_values"
CLOSE = {"rel": 0.0, "abs": 1e-6}


def _load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return content


def _cases(name: str) -> list[Any]:
    return [pytest.param(case, id=str(i)) for i, case in enumerate(_load(name)["cases"])]


def _array(values: Any) -> Floats:
    return np.array(values, dtype=np.float64)


def _tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_every_file_names_its_source() -> None:
    files = sorted(FOLDER.glob("*.json"))
    assert len(files) == 7
    for path in files:
        content = json.loads(path.read_text())
        assert set(content["source"]) == {"repository", "commit", "licence", "file", "functions"}, path.name
        assert len(content["source"]["commit"]) == 40
        assert content["settings"] and content["conventions"]


@pytest.mark.parametrize("case", _cases("nt_xent"))
def test_nt_xent(case: dict[str, Any]) -> None:
    z1, z2, temperature = _array(case["z1"]), _array(case["z2"]), case["temperature"]
    assert mae_oracle.nt_xent(z1, z2, temperature) == pytest.approx(case["loss"], **CLOSE)
    records = len(z1)
    both = torch.from_numpy(np.concatenate([z1, z2]))
    own = torch.eye(records, dtype=torch.float64).repeat(2, 2) - torch.eye(2 * records, dtype=torch.float64)
    assert float(soft_contrastive_loss(both, own, temperature)) == pytest.approx(case["loss"], **CLOSE)
    row_loss = nt_xent_term("record", 1.0, both, temperature).loss
    assert float(row_loss.total / row_loss.kept) == pytest.approx(case["loss"], **CLOSE)


@pytest.mark.parametrize("case", _cases("vicreg"))
def test_vicreg(case: dict[str, Any]) -> None:
    weights = {name: case[name] for name in ("invariance", "variance", "covariance", "eps")}
    loss = vicreg_oracle.vicreg_loss(_array(case["z1"]), _array(case["z2"]), **weights)
    assert loss == pytest.approx(case["loss"], **CLOSE)
    assert loss == pytest.approx(case["loss_of_the_authors"], **CLOSE)
    terms = vicreg_terms(_tensor(case["z1"]), _tensor(case["z2"]), case["eps"])
    fast = sum(case[name] * float(value) for name, value in terms._asdict().items())
    assert fast == pytest.approx(case["loss"], **CLOSE)


def test_sinkhorn() -> None:
    content = _load("swav")["sinkhorn"]
    for case in content["cases"]:
        codes = swav_oracle.sinkhorn(_array(content["scores"]), case["eps"], case["iterations"])
        np.testing.assert_allclose(codes, _array(case["codes"]), rtol=0.0, atol=1e-6)
        fast = swav.sinkhorn(_tensor(content["scores"]), case["eps"], case["iterations"])
        np.testing.assert_allclose(fast.numpy(), _array(case["codes"]), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("case", _cases("swav"))
def test_swav(case: dict[str, Any]) -> None:
    crops = [_array(crop) for crop in case["scores"]]
    queues = [_array(queue).reshape(-1, crops[0].shape[1]) for queue in case["queue_scores"]]
    loss = swav_oracle.swav_loss(crops, queues, case["temperature"], case["eps"], case["iterations"])
    assert loss == pytest.approx(case["loss"], **CLOSE)
    scores, assigned = _tensor(case["scores"]), []
    for queue, crop in zip(queues, scores[:2], strict=True):
        rows = torch.cat([torch.from_numpy(queue), crop])
        assigned.append(swav.sinkhorn(rows, case["eps"], case["iterations"])[len(queue) :])
    fast = swav.swapped_prediction(scores, torch.stack(assigned), case["temperature"])
    assert float(fast.mean()) == pytest.approx(case["loss"], **CLOSE)


@pytest.mark.parametrize("case", _cases("ts2vec"))
def test_ts2vec(case: dict[str, Any]) -> None:
    z1, z2 = _array(case["z1"]), _array(case["z2"])
    assert ts2vec_oracle.instance_loss(z1, z2) == pytest.approx(case["instance"], **CLOSE)
    assert ts2vec_oracle.temporal_loss(z1, z2) == pytest.approx(case["temporal"], **CLOSE)
    loss = ts2vec_oracle.ts2vec_loss(z1, z2, case["alpha"], case["temporal_unit"])
    assert loss == pytest.approx(case["loss"], **CLOSE)
    fast = ts2vec_loss(_tensor(case["z1"]), _tensor(case["z2"]), case["alpha"], case["temporal_unit"])
    assert float(fast) == pytest.approx(case["loss"], **CLOSE)


@pytest.mark.parametrize("case", _load("wav2vec2")["contrast"])
def test_wav2vec2_contrast(case: dict[str, Any]) -> None:
    negatives, codes = np.array(case["negatives"]), np.array(case["codes"])
    context, quantised = _array(case["context"]), _array(case["quantised"])
    loss = ecg_fm_oracle.masked_contrast(context, quantised, negatives, codes, case["temperature"])
    assert loss == pytest.approx(case["loss"], **CLOSE)
    fast, _ = masked_contrast(
        torch.from_numpy(context)[None],
        torch.from_numpy(quantised)[None],
        torch.from_numpy(codes)[None],
        torch.from_numpy(negatives)[None],
        case["temperature"],
    )
    assert float(fast.mean()) == pytest.approx(case["loss"], **CLOSE)
    equal = (codes[negatives] == codes[:, None]).all(axis=2)
    assert 0 < case["left_out"] == equal.sum() < equal.size


def _softmax(logits: Floats) -> Floats:
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def test_wav2vec2_diversity() -> None:
    case = _load("wav2vec2")["quantiser"]
    groups, entries = case["groups"], case["entries"]
    x = _array(case["x"])
    logits = (x @ _array(case["weight"]).T + _array(case["bias"])).reshape(-1, groups, entries)
    np.testing.assert_array_equal(logits.argmax(axis=2), np.array(case["codes"]).reshape(-1, groups))
    probabilities = _softmax(logits)
    assert sum(ecg_fm_oracle.perplexities(probabilities)) == pytest.approx(case["prob_perplexity"], **CLOSE)
    assert ecg_fm_oracle.diversity(probabilities) == pytest.approx(case["diversity"], **CLOSE)


def test_wav2vec2_quantiser() -> None:
    """Its evaluation: the codes, the vectors they stand for, and how evenly codes are used."""
    case = _load("wav2vec2")["quantiser"]
    groups, entries, x = case["groups"], case["entries"], _tensor(case["x"])
    codebook = _tensor(case["codebook"]).unflatten(0, (groups, entries))
    quantiser = ProductQuantiser(x.shape[-1], groups, entries, groups * codebook.shape[-1]).double()
    with torch.no_grad():
        quantiser.choose.weight.copy_(_tensor(case["weight"]))
        quantiser.choose.bias.copy_(_tensor(case["bias"]))
        quantiser.codebook.copy_(codebook)
        logits = quantiser.logits(x)
        chosen = straight_through(logits, 1.0)
        assert chosen.argmax(-1).tolist() == case["codes"]
        np.testing.assert_allclose(quantiser.look_up(chosen).numpy(), _array(case["quantised"]), rtol=0.0, atol=1e-6)
        shares = logits.softmax(-1).mean((0, 1))
        assert float(perplexity(shares).sum()) == pytest.approx(case["prob_perplexity"], **CLOSE)
        assert float(diversity(shares)) == pytest.approx(case["diversity"], **CLOSE)
        assert float(perplexity(chosen.mean((0, 1))).sum()) == pytest.approx(case["code_perplexity"], **CLOSE)


@pytest.mark.parametrize("case", _cases("cmsc"))
def test_cmsc(case: dict[str, Any]) -> None:
    """The public value weighs own pairs and the others of a patient by their number; ours has a term for each."""
    views, patients, temperature = [_array(case["z1"]), _array(case["z2"])], case["patients"], case["temperature"]
    unit = [unit_rows(torch.from_numpy(view)) for view in views]

    def slow(keys: list[int]) -> float:
        return clocs_oracle.clocs_loss(views, keys, temperature)

    def fast(keys: list[int]) -> float:
        return float(patient_contrast(unit, torch.tensor(keys), temperature).loss)

    records = len(patients)
    shared = sum(patients[i] == patients[j] for i in range(records) for j in range(records) if i != j)
    for loss in (slow, fast):
        own = loss(list(range(records)))
        others = 2.0 * loss(patients) - own if shared else 0.0
        assert (records * own + shared * others) / (records + shared) == pytest.approx(case["loss"], **CLOSE)


def _unit(values: Any) -> Floats:
    rows = _array(values)
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


@pytest.mark.parametrize("case", _cases("simdino"))
def test_simdino(case: dict[str, Any]) -> None:
    teacher, student = [_unit(view) for view in case["teacher"]], [_unit(view) for view in case["student"]]
    records, dims = teacher[0].shape
    gamma = (dims + records) / (dims * records)
    assert simdino_oracle.compression(teacher, student) == pytest.approx(case["compression"], **CLOSE)
    rates = [simdino_oracle.coding_rate(view, case["eps"]) for view in student[: len(teacher)]]
    assert gamma * sum(rates) / len(rates) == pytest.approx(case["gamma_expansion"], **CLOSE)
    loss = simdino_oracle.simdino_loss(teacher, student, case["eps"], case["coefficient"], gamma)
    assert loss == pytest.approx(case["loss"], **CLOSE)
    of_teacher, of_student = torch.from_numpy(np.stack(teacher)), torch.from_numpy(np.stack(student))
    cosine = simdino.cosines(of_teacher, of_student).mean()
    large = of_student[: len(of_teacher)]
    rate = simdino.coding_rate(large.mT @ large, float(records), case["eps"]).mean()
    assert float(-case["coefficient"] * cosine - gamma * rate) == pytest.approx(case["loss"], **CLOSE)


def test_simdino_patches() -> None:
    case = _load("simdino")["patch"]
    masked = np.array(case["masked"], dtype=np.bool_)
    loss = simdino_oracle.patch_loss(_array(case["predicted"]), _array(case["wanted"]), masked)
    assert loss == pytest.approx(case["loss"], **CLOSE)
