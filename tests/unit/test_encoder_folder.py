"""What an exported encoder and the places of a run are known by, in files that older versions wrote."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from beatray.cli import main
from beatray.errors import CheckpointError
from beatray.models.encoder_folder import encoder_sha256, export_encoder, load_encoder
from beatray.models.registry import build_encoder
from beatray.models.tiny import Tiny, TinySettings
from beatray.storage.store import Store, absolute

OLD_ENCODERS = Path(__file__).parents[1] / "data" / "encoders-0.1"


class WithTrunk(Tiny):
    """A network with a part of the name below which version 0.1 kept the weights of every network."""

    names: ClassVar[dict[str, dict[str, Any]]] = {"with_trunk": {}}

    def __init__(self, settings: TinySettings) -> None:
        super().__init__(settings)
        self.trunk = nn.Sequential(nn.Conv1d(64, 64, 1))


@pytest.mark.parametrize(
    ("name", "in_runs", "in_embeddings"),
    [
        (
            "tiny",
            "718e743d11b02d709f428d66425d70e693f9bc60d12656ae8c409d12496973f0",
            "de811a9550905eeb1c30b72292a8542155a7d2c8c8939f3be4bdd09ea7606ef9",
        ),
        (
            "xresnet1d18",
            "76dbb329ca3ca0635e591cb2e307c74ce52c545a27297858ac21a8a8c63ceec6",
            "935badc28db6a19cd9b5fe4a7b641d51260d743ed4da6b9f0a527e263fce8c1f",
        ),
    ],
)
def test_an_encoder_is_known_by_what_runs_and_embeddings_have_written_down(
    name: str, in_runs: str, in_embeddings: str, tmp_path: Path
) -> None:
    elsewhere = shutil.copytree(OLD_ENCODERS / name, tmp_path / "run")
    for path in (OLD_ENCODERS / name, elsewhere, elsewhere / "encoder"):
        assert encoder_sha256(str(path)) == in_runs
        assert encoder_sha256(str(path), listed=True) == in_embeddings


def test_a_path_is_from_the_root_or_a_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert absolute("runs/a.csv") == str(tmp_path / "runs" / "a.csv") and absolute("/d/a") == "/d/a"
    assert absolute("~/a") == "/home/somebody/a" and absolute("~no-such-user/a") == str(
        tmp_path / "~no-such-user" / "a"
    )
    assert absolute("file:///d/a%20b") == "/d/a b" and absolute("s3://b/a?region=x") == "s3://b/a?region=x"
    assert absolute("beatray://beatray-small") == "beatray://beatray-small"


def test_a_network_may_have_a_part_called_trunk(tmp_path: Path) -> None:
    encoder = build_encoder(f"{__name__}:WithTrunk")
    export_encoder(Store(str(tmp_path)), encoder, {"name": f"{__name__}:WithTrunk", "settings": {}})
    loaded = load_encoder(str(tmp_path)).state_dict()
    assert "trunk.0.weight" in loaded
    for key, value in encoder.state_dict().items():
        assert torch.equal(loaded[key], value), key


def test_where_no_encoder_lies_is_told_from_a_run_that_has_not_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name, words in (
        ("run", "is a run that has not ended, and has no encoder yet"),
        ("no", "no exported encoder at"),
    ):
        with pytest.raises(CheckpointError, match=words):
            load_encoder(str(tmp_path / name))
        assert main(["export", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err
        assert words in error and "rrno" not in error and error.count("\n") == 1
    export_encoder(Store(str(tmp_path / "run")), build_encoder("tiny"), {"name": "tiny", "settings": {}, "recipe": {}})
    (tmp_path / "run" / "encoder" / "trained_on.bin").unlink()
    with pytest.raises(CheckpointError, match=r"encoder is not complete: trained_on\.bin is missing"):
        load_encoder(str(tmp_path / "run"))
