"""From settings to a run: what follows from validations is refused where no recording is held out for one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from beatray.errors import SettingsError
from beatray.train.prepare import LabelledParts, prepare_run
from every_method import rows_of, settings_of
from label_tables import many

N = 20


def corpus_of(folds: bool) -> Any:
    """A corpus in memory, of two recordings in each of ten folds, or of a source without folds."""
    _, statistics = rows_of(6)
    index = many(N).assign(shard=0, group=0, row=np.arange(N))
    if not folds:
        index["fold"] = -1
    measured = {f"{name}_features": table for name, table in statistics.items()}
    manifest = SimpleNamespace(shards=(None,), statistics=measured, hash="abc")
    return SimpleNamespace(index=index, manifest=manifest, recipe={}, store=None)


@pytest.mark.parametrize(
    ("override", "off"),
    [("train.patience=3", "set train.patience=null"), ("checkpoint.export=best", "set checkpoint.export=last")],
)
def test_patience_and_the_best_weights_need_recordings_to_validate_on(override: str, off: str) -> None:
    settings = settings_of("simclr_tiny", override)
    assert sum(prepare_run(settings, corpus_of(folds=True)).validation.sizes) == N // 10
    for left, overrides in (
        (corpus_of(folds=False), []),
        (corpus_of(folds=True), ["corpus.validation_folds=[]"]),
        (corpus_of(folds=True), ["corpus.pretrain_sees_test=true"]),
    ):
        with pytest.raises(SettingsError, match=rf"{override} needs a validation.*corpus\.validation_folds.*{off}"):
            prepare_run(settings_of("simclr_tiny", override, *overrides), left)
        assert prepare_run(settings_of("simclr_tiny", *overrides), left).validation.groups == ()
    parts: Any = LabelledParts(np.arange(12), np.arange(12, N), targets=None)  # type: ignore[arg-type]
    found = prepare_run(settings, corpus_of(folds=False), parts)  # fine-tuning holds its own out
    assert sum(found.validation.sizes) == N - 12
