"""Values on the command line are laid over what Hydra composed from the choices: the result is Hydra's own."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from beatray import config

VALUE_OVERRIDES = [
    ("train.epochs=3", "train.learning_rate=1e-4", "objective.temperature=null"),
    ("corpus.test_folds=[8,9]", "corpus.validation_folds=[]", "train.workers=[1,3]"),
    ("objective={temperature: 0.3}", "objective.record_weight=0.5"),  # a mapping is merged
    ("run='a ${b} c'", r"run='it\'s'", "run=a\\,b", "out=file:///x y"),
    ("train.epochs=3", "train.epochs=4"),  # the later wins
]


@pytest.mark.parametrize("overrides", VALUE_OVERRIDES, ids=" ".join)
def test_values_laid_over_a_composition_are_what_hydra_composes(overrides: tuple[str, ...]) -> None:
    chosen, folder = ("encoder=tiny", "train=small"), str(config.config_folder())
    forced = tuple(f"++{override}" for override in overrides)
    laid = config._laid_over(config._by_hydra("pretrain", chosen, folder), forced)
    assert laid is not None
    whole = config._by_hydra("pretrain", (*chosen, *forced), folder)
    assert OmegaConf.to_container(laid, resolve=True) == OmegaConf.to_container(whole, resolve=True)
    assert laid != config._by_hydra("pretrain", chosen, folder)  # what is kept stays as it was


@pytest.mark.parametrize("override", ["~train.epochs", "+train.epochs=3", "++train.epochs=1,2", "++train.epochs=["])
def test_other_overrides_are_left_to_hydra(override: str) -> None:
    assert config._laid_over(config._by_hydra("pretrain", (), str(config.config_folder())), (override,)) is None
