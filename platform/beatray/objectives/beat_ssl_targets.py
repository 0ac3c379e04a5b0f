"""The soft targets that Beat-SSL's settings ask for, of records or of beats: soft_targets.py with the numbers set."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from beatray.objectives.beat_ssl_settings import BeatSslSettings
from beatray.objectives.row_targets import RowTargets, TargetsOf
from beatray.objectives.soft_targets import (
    Features,
    MaskOf,
    Similarity,
    fix_positive_mass,
    kernel_width,
    soft_1,
    soft_2,
    soft_z,
)


def soft_of(
    settings: BeatSslSettings,
    kind: str,
    known: Features,
    every: Tensor,
    own_of: MaskOf,
    self_index: Tensor,
    there: Tensor | None = None,
) -> TargetsOf:
    """Targets of kind soft_1, soft_2 or soft_z by rows, from the imputed features of all columns (M, F).

    self_index (R,): the columns that this rank's rows are. Every rank must call it together.
    """
    similarity_of = _similarity_of(settings, kind, known, every, own_of, self_index, there)

    def of_rows(index: Tensor) -> RowTargets:
        own, similarity = own_of(index), similarity_of(index)
        soft = similarity.targets(own, every.dtype)
        mass = settings.positive_mass if settings.loss == "soft_cross_entropy" else None
        return RowTargets(fix_positive_mass(soft, own, index, mass, there), own, similarity)

    return of_rows


def _similarity_of(
    s: BeatSslSettings,
    kind: str,
    known: Features,
    every: Tensor,
    own_of: MaskOf,
    self_index: Tensor,
    there: Tensor | None,
) -> Callable[[Tensor], Similarity]:
    if kind == "soft_1":
        return lambda index: soft_1(every[index], every, s.exponent)
    if kind == "soft_2":
        scaled = known.scale(every)
        return lambda index: soft_2(scaled[index], scaled, s.alpha, s.tau_instance)
    z = known.standardise(every)
    width = kernel_width(z, own_of, self_index, there)
    return lambda index: soft_z(z[index], z, width, s.z_power)
