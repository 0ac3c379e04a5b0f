"""The weights that come with the package: found by name, whole, small, never trained on what is held out, and made by
the committed command."""

from __future__ import annotations

import json
from pathlib import Path

import bundled_weights
import numpy as np
import pandas as pd
import pytest

import beatray
from beatray.cli import main
from beatray.commands.evaluate import settings_from
from beatray.corpus.reader import open_corpus
from beatray.corpus.splits import Role, assign_roles, policy_of
from beatray.errors import SettingsError
from beatray.finetune.card import model_card
from beatray.finetune.settings import finetune_settings
from beatray.ingest.plan import SAMPLE
from beatray.models import bundled
from beatray.models.encoder_folder import describe_encoder, seen_by, trained_on
from beatray.models.model_folder import describe_model, model_files
from beatray.train.composed import pretrain_settings
from evaluation_rows import read_rows
from pretraining import losses, train_here

SMALL, WAVES = "beatray-small", "beatray-waves"


def test_a_name_stands_for_the_weights_of_the_package_wherever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bundled.names() == (SMALL, WAVES)
    monkeypatch.chdir(tmp_path)
    assert bundled.location_of(SMALL) == f"beatray://{SMALL}" and bundled.location_of(f"./{SMALL}") == f"./{SMALL}"
    encoder = beatray.load_encoder(SMALL)
    settings = pretrain_settings(["corpus=/c", f"encoder.weights={SMALL}"])
    assert list(settings.encoder["channels"]) == list(encoder.description["settings"]["channels"])
    assert finetune_settings(["corpus=/c", f"encoder={SMALL}", "labels=sex"]).encoder == settings.encoder
    with pytest.raises(SettingsError, match=f"or one of {SMALL}"):
        pretrain_settings(["corpus=/c", "encoder.weights=beatray-smal"])


def test_they_read_ecgs() -> None:
    rows = read_rows(ludb=(str(SAMPLE / "ludb-sample.zip"), 2))
    x_mv = rows.signal_uv / 1000.0
    vectors = beatray.EcgEncoder(SMALL).transform(x_mv)
    assert vectors.shape == (2, beatray.load_encoder(SMALL).embed_dim) and np.isfinite(vectors).all()
    found = beatray.load_model(WAVES).predict(x_mv).waves
    assert found is not None
    for waves, peaks in zip(found, rows.r_peaks, strict=True):
        marked = [wave.peak_s for wave in waves if wave.kind == "QRS"]
        known = [peak / 500.0 for peak in peaks]
        near = [min(abs(peak - mark) for mark in marked) < 0.05 for peak in known[1:-1]]
        assert np.mean(near) > 0.9  # the network and the detector agree where beats are


def test_their_cards_are_what_is_written_today() -> None:
    for name in bundled.names():
        folder = Path(bundled.__file__).parents[1] / "weights" / name
        about = json.loads((folder / bundled.ABOUT).read_text())
        assert (folder / bundled.CARD).read_text() == bundled_weights.card(name, about)
    assert model_files(WAVES)["README.md"].decode() == model_card(describe_model(WAVES))


def test_they_are_small_and_say_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert sum(map(bundled.size_bytes, bundled.names())) < 5_000_000
    assert main(["models"]) == 0
    listed = capsys.readouterr().out
    for name in bundled.names():
        assert f"{name}: " in listed and "CC BY 4.0" in listed
        assert main(["models", name]) == 0
        card = capsys.readouterr().out
        about = bundled.about(name)
        assert card.strip() == bundled_weights.card(name, about).strip()  # nothing was written by hand
        assert "Not a medical device" in card and all(score in card for score in about["scores"])
    assert main(["models", "beatray-smal"]) == 2
    assert f"did you mean '{SMALL}'" in capsys.readouterr().err


def test_they_were_trained_on_nothing_held_out(sample_files: str) -> None:
    index = open_corpus(sample_files).index
    policy = policy_of(pretrain_settings(["corpus=/c", *bundled_weights.HELD_OUT]).corpus)
    tested = index[assign_roles(index, policy) == Role.TEST]
    trained = index[assign_roles(index, policy) == Role.TRAIN]
    assert len(tested) > 20 and {"ptbxl", "ludb"} == set(tested["source"])
    assert not seen_by(SMALL, tested["content_hash"]).any()
    taught_waves = np.frombuffer(model_files(WAVES)["trained_on.bin"], "<u8")
    assert set(trained_on(SMALL).tolist()) <= set(taught_waves.tolist())
    hashes = np.frombuffer(b"".join(value[:8] for value in tested["content_hash"]), "<u8")
    assert not np.isin(hashes, taught_waves).any()
    assert seen_by(SMALL, trained["content_hash"]).mean() > 0.95
    assert len(trained_on(SMALL)) > 5000


def test_fold_10_is_neither_trained_on_nor_tested_whatever_data_are_given() -> None:
    """Inner validation leaves out what has the role of validation (`held_out.labelled_rows`)."""
    index = pd.DataFrame(
        {
            "record_id": [f"ptbxl/{number}" for number in range(1, 21)],
            "patient_id": [f"ptbxl/{number}" for number in range(1, 21)],
            "source": "ptbxl",
            "fold": np.tile(np.arange(1, 11), 2),
            "content_hash": [bytes([number]) * 32 for number in range(1, 21)],
        }
    )
    trained = pretrain_settings(["corpus=/c", *bundled_weights.PRETRAINING]).corpus
    tested = settings_from([f"encoder={SMALL}", "corpus=/c", *bundled_weights.EVALUATING])
    assert tested.evaluate.classify.validation == "inner"
    used = {
        role: sorted(set(index["fold"][assign_roles(index, policy_of(corpus)) == role]))
        for corpus, role in ((trained, Role.TRAIN), (tested.corpus, Role.TEST))
    }
    assert used == {Role.TRAIN: list(range(1, 9)), Role.TEST: [9]}
    assert set(index["fold"][assign_roles(index, policy_of(tested.corpus)) == Role.TRAIN]) == set(range(1, 9))


def test_the_committed_command_made_them(sample_corpus: str, tmp_path: Path) -> None:
    """Its settings are those in the weights; and a short piece of it still gives the losses that it gave."""
    assert bundled.about(SMALL)["words"] == list(bundled_weights.PRETRAINING)
    assert bundled.about(WAVES)["words"] == list(bundled_weights.SEGMENTING)
    settings = pretrain_settings(["corpus=/c", *bundled_weights.PRETRAINING])
    made = describe_encoder(SMALL)
    assert made["settings"]["channels"] == list(settings.encoder["channels"])
    assert made["objective"] == json.loads(json.dumps(settings.objective))
    assert describe_model(WAVES)["objective"]["labels"] == "waves"

    overrides = [*bundled_weights.PRETRAINING, "train.precision=fp32", "train.epochs=1", "train.stop_after_steps=2"]
    train_here(sample_corpus, tmp_path, "piece", *overrides)
    assert losses(tmp_path, "piece") == pytest.approx(PIECE, rel=1e-4)


PIECE = [6.213025, 5.914615]
"""Losses of the first two steps on the sample, in full precision."""
