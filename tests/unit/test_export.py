"""Exported encoders: programs equal on real recordings, a card of what is known, refusals with the difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from torch import nn

import beatray
from beatray.cli import main
from beatray.export import programs
from beatray.export.card import model_card
from beatray.export.folder import export_folder, real_recordings
from beatray.export.programs import ExportError, to_programs
from beatray.models import encoder_folder
from beatray.models.encoder import Encoder, Stage
from beatray.models.registry import build_encoder
from beatray.storage.store import Store
from beatray.train import checkpoint as checkpoints
from counts import count

torch.set_num_threads(1)

TABLE = {"table": "/secret/labels.csv", "id_key_file": "/secret/key"}
RECIPE = {"rate_hz": 500, "unit": "1 uV, int16, unfiltered", "beat_features": ["x"]}


def trained(name: str, **settings: Any) -> Any:
    """An encoder whose statistics and weights are not those of an untouched one."""
    torch.manual_seed(3)
    encoder = build_encoder(name, **settings).train()
    for parameter in encoder.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.2, 0.8)
    x_mv = torch.from_numpy(recordings()[:, :, :2000])
    with torch.no_grad():
        for _ in range(3):
            encoder(x_mv)
    return encoder.eval()


def recordings() -> np.ndarray:
    if not hasattr(recordings, "kept"):
        recordings.kept = real_recordings()  # type: ignore[attr-defined]
    kept: np.ndarray = recordings.kept  # type: ignore[attr-defined]
    return kept


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    description = {
        "name": "tiny",
        "settings": {},
        "recipe": RECIPE,
        "objective": {"name": "beat_ssl", "rhythm": "soft_z", "beat_classifier": "/secret/beats", "table": TABLE},
        "manifest_hash": "ab" * 32,
        "sources": {"ludb": 120, "ptbxl": 1302},
        "corpus_settings": {"path": "/secret/place", "test_folds": [10]},
        "steps": 395,
        "seed": 7,
    }
    encoder_folder.export_encoder(Store(str(folder)), trained("tiny"), description, b"12345678")
    return folder


def test_the_bundled_recordings_are_real_and_prepared() -> None:
    x_mv = recordings()
    assert x_mv.shape == (8, 12, 5000) and x_mv.dtype == np.float32
    assert (np.ptp(x_mv, axis=2).max(axis=1) > 0.5).all() and np.abs(x_mv).max() <= 5.0
    np.testing.assert_allclose(x_mv[:4, 2], x_mv[:4, 1] - x_mv[:4, 0], atol=0.02)  # PTB-XL: III = II - I


def one_of_each(*cases: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """The first case of some networks (attention, recurrence, state space); all with BEATRAY_CHAOS=1, since every
    export takes some ten seconds."""
    first = {case[0]: case for case in reversed(cases)}
    return count([first[name] for name in ("s4d", "lstm", "wav2vec")], list(cases))


CONVOLUTIONAL: list[tuple[str, dict[str, Any]]] = [
    ("tiny", {"norm": "group", "pooling": "mean_max"}),
    ("xresnet1d18", {}),
    ("xresnet1d18", {"norm": "group", "out_stride": 32, "pooling": "mean_std"}),
    ("temporal_net", {"stem": 4, "widths": [4, 8]}),
    ("temporal_net", {"stem": 4, "stem_stride": 2, "widths": [4, 8], "block_stride": 2, "streams": 2}),
]


@pytest.mark.parametrize(("name", "settings"), count(CONVOLUTIONAL[:1], CONVOLUTIONAL))
def test_programs_are_equal_for_any_number_of_recordings_and_samples(name: str, settings: dict[str, Any]) -> None:
    encoder = trained(name, **settings)
    made = to_programs(encoder, recordings())
    assert made.any_length and made.onnx is not None
    assert set(made.difference) == {"model.pt2", "model.onnx"} and max(made.difference.values()) < 1e-3
    session = onnxruntime.InferenceSession(made.onnx, providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["x_mv"]
    for records, samples in ((1, 777), (5, 5000)):  # none of the cases of the export itself
        x = recordings()[:records, :, :samples].copy()
        with torch.no_grad():
            expected = encoder(torch.from_numpy(x)).numpy()
        found = session.run(["embedding"], {"x_mv": x})[0]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "settings", "longest"),
    one_of_each(
        ("s4d", {"width": 16, "layers": 2, "state": 4, "stride": 8}, 5000),
        ("s4d", {"width": 16, "layers": 1, "state": 4, "direction": "both", "pre_norm": True}, 5000),
        ("s4d", {"width": 16, "layers": 2, "state": 4, "stride": 8, "direction": "bidirectional"}, 5000),
        ("lstm", {"width": 16, "layers": 2}, None),
        ("lstm", {"width": 16, "layers": 1, "direction": "both", "pool_last": True}, None),
        ("ts2vec", {"width": 8, "out_width": 16, "blocks": 3}, None),
        ("ts2vec", {"width": 8, "out_width": 16, "blocks": 2, "stride": 8}, None),
        ("vit", {"width": 32, "depth": 2}, None),
        ("vit", {"width": 32, "depth": 2, "registers": 1, "bias": False}, None),
        ("wav2vec", {"conv_channels": 16, "width": 32, "depth": 2, "heads": 2, "hidden": 64}, None),
        (
            "wav2vec",
            {"conv_channels": 16, "width": 32, "depth": 1, "heads": 2, "position_kernel": 5, "half_rate": True},
            None,
        ),
    ),
)
def test_networks_with_context_are_exported_without_a_loop_or_fft(
    name: str, settings: dict[str, Any], longest: int | None
) -> None:
    encoder = trained(name, **settings)
    made = to_programs(encoder, recordings())
    assert made.any_length and made.longest == longest and made.onnx is not None
    assert set(made.difference) == {"model.pt2", "model.onnx"} and max(made.difference.values()) < 1e-3
    session = onnxruntime.InferenceSession(made.onnx, providers=["CPUExecutionProvider"])
    for records, samples in ((1, 777), (5, 5000)):
        x = recordings()[:records, :, :samples].copy()
        with torch.no_grad():
            expected = encoder(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(session.run(["embedding"], {"x_mv": x})[0], expected, rtol=1e-4, atol=1e-4)
    too_long = np.tile(recordings()[:1], 2)
    if longest is None:
        assert session.run(["embedding"], {"x_mv": too_long})[0].shape == (1, encoder.embed_dim)
    else:  # a kernel that ends too early would be wrong in silence
        with pytest.raises(Exception, match="Add"):
            session.run(["embedding"], {"x_mv": too_long})


def card_of(results: dict[str, Any] | None, sha256: str = "mine", **description: Any) -> str:
    made = programs.Programs(b"", None, True, {"model.pt2": 1e-6})
    return model_card({"name": "tiny", **description}, made, 1, results, "8 recordings", sha256)


def run_of(value: float, **changes: Any) -> dict[str, Any]:
    about = {"task": "classify", "protocol": "linear_probe", "fraction": 1.0, "variant": "pretrained", "encoder": "a"}
    return {**about, "architecture": "tiny", "condition": "clean", "metrics": {"auroc": value}, **changes}


def test_a_card_has_the_scores_of_its_encoder_on_recordings_as_they_are() -> None:
    random = {"variant": "random", "encoder": "random"}
    results = {
        "tasks": {"classify": {"test_ids": ["x"], "title": "superclasses"}},
        "encoder_sha256": {"a": "mine", "b": "another"},
        "runs": [
            *(run_of(0.9), run_of(0.5, condition="noise 3"), run_of(0.4, condition="1 lead")),
            run_of(0.7, encoder="b", architecture="wide"),
            *(run_of(0.6, **random), run_of(0.1, **random | {"architecture": "wide"})),
            run_of(0.8, variant="features", encoder="features", architecture=""),
        ],
    }
    assert "| AUROC | 0.900 | 0.600 | 0.800 |" in card_of(results)
    assert "| AUROC | 0.700 | 0.100 | 0.800 |" in card_of(results, "another")
    with pytest.raises(ExportError, match=r"of other encoders \(a, b\)"):
        card_of(results, "a third")
    with pytest.raises(ExportError, match="of other encoders"):  # two of them, and nobody knows which
        card_of({**results, "encoder_sha256": {}})


def test_a_card_names_what_its_training_went_on_from() -> None:
    own = {"sources": {"ludb": 20}}
    assert "went on from" not in card_of(None, **own, started_from=None)
    card = card_of(None, **own, started_from="f" * 64, earlier_sources={"ptbxl": 5147, "ludb": 126})
    assert f"an encoder (SHA-256 {'f' * 16}) that was trained on recordings of: ludb 126, ptbxl 5,147." in card
    assert "recordings of: not recorded." in card_of(None, **own, started_from="f" * 64, earlier_sources=None)


def test_a_folder_for_others(run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = {
        "settings": {},
        "tasks": {"classify": {"test_ids": ["a", "b"], "title": "labels.csv"}},
        "runs": [
            {
                "task": "classify",
                "protocol": "linear_probe",
                "fraction": 1.0,
                "variant": variant,
                "metrics": {"auroc": 0.8 + seed / 50},
            }
            for variant in ("pretrained", "random")
            for seed in range(2)
        ],
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    out = tmp_path / "mine"
    assert main(["export", str(run_folder), "--out", str(out), "--results", str(tmp_path)]) == 0
    assert "model.onnx: equal to the encoder to" in capsys.readouterr().out
    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "beatray" and "beat_ssl" in front["tags"]
    for overrides in (
        "| ludb | 120 | ODC-By 1.0 |",
        "| ptbxl | 1,302 | CC BY 4.0 |",
        "ab" * 32,
        "rhythm: soft_z",
        "(batch, 12, samples)",
        "| labels.csv | linear probe | 100% | AUROC | 0.810 +- 0.014 | 0.810 +- 0.014 |  |",
        "Not a medical device",
        "f_c = 0.5 Hz",
        "test_folds",
    ):
        assert overrides in card, overrides
    assert "/secret" not in card and "/secret" not in (out / "encoder.json").read_text()
    here = str(Path(beatray.__file__).parent).encode()
    assert all(here not in file.read_bytes() for file in out.iterdir())  # nothing shows the machine it was made on
    # the folder is an encoder like any other, and every file of it is hashed
    x_mv = recordings()[:2]
    with torch.no_grad():
        expected = encoder_folder.load_encoder(str(run_folder))(torch.from_numpy(x_mv)).numpy()
        np.testing.assert_array_equal(beatray.load_encoder(str(out))(torch.from_numpy(x_mv)).numpy(), expected)
    loaded = torch.export.load(out / "model.pt2").module()
    np.testing.assert_allclose(loaded(torch.from_numpy(x_mv))[0].detach().numpy(), expected, atol=1e-5)
    assert encoder_folder.trained_on(str(out)).tolist() == encoder_folder.trained_on(str(run_folder)).tolist()
    damaged = bytearray((out / "model.onnx").read_bytes())
    damaged[100] ^= 1
    (out / "model.onnx").write_bytes(damaged)
    with pytest.raises(checkpoints.CheckpointError, match=r"model\.onnx is damaged"):
        beatray.load_encoder(str(out))
    assert main(["export", str(run_folder), "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_program_that_differs_is_refused_with_the_difference(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(module: nn.Module) -> None:
        with torch.no_grad():
            module.encoder.stem_norm.bias.add_(0.01)  # type: ignore[union-attr,operator]

    monkeypatch.setattr(programs, "_replace_layers", shifted)
    with pytest.raises(
        ExportError, match=r"model.pt2 is not equal to the encoder: embedding .* differs by up to 0\.\d+"
    ):
        export_folder(str(run_folder), tmp_path / "out", with_onnx=False)
    assert list(tmp_path.iterdir()) == []


def test_without_the_libraries_it_names_what_to_install(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "NEEDED", ("onnx", "no_such_library"))
    with pytest.raises(ExportError, match=r"ONNX needs no_such_library: pip install 'beatray\[export\]'"):
        to_programs(trained("tiny"), recordings())
    made = to_programs(trained("tiny"), recordings(), with_onnx=False)
    assert made.onnx is None and set(made.difference) == {"model.pt2"}


def test_an_encoder_that_fixes_the_length_is_exported_for_windows_only() -> None:
    class Fixed(Encoder):
        def forward_stages(self, x_mv: torch.Tensor, n_samples: torch.Tensor | None = None) -> list[torch.Tensor]:
            return [x_mv.reshape(x_mv.shape[0], 12, 10, 500).mean(-1)[:, :3]]

    made = to_programs(Fixed(None, [Stage(3, 500)]).eval(), recordings(), with_onnx=False)
    assert not made.any_length


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    encoder_folder.export_encoder(Store(str(tmp_path)), trained("tiny"), {"name": "tiny", "settings": {}, "recipe": {}})
    export_folder(str(tmp_path), tmp_path / "out", with_onnx=False)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Sources and their licences: not recorded" in card and "Not evaluated" in card and "model.onnx" not in card
