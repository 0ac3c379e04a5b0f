"""What should be near what: hard and soft target matrices for records and for beats, and how they are watched.

All matrices are rows of this rank against columns of the global batch, (R, M), float, at least 0. They are made of some
rows at a time (row_chunks.py): a contrast takes a function from rows to their targets (row_targets.py). `own` marks the
other view of the same record (or beat), the positive pair, whose target is 1; the row itself is no pair of its own.
Columns that are not there (`there` (M,) bool, None: all are) have no part in medians, histograms, masses and classes.

- hard: 1 for own pairs, else 0. With the `soft_cross_entropy` loss this is NT-Xent.
- soft_1: the cosine of raw feature vectors, at least 0, to the power p (Beat-SSL, Rizqyawan et al., ISBI 2026, sharpens
  with p = 50). Raw physiological features point nearly the same way, so without a large p all targets are near 1.
- soft_2: 2 alpha sigmoid(-tau d) of the distance d of range-scaled features (SoftCLT, Lee, Park and Lee, ICLR 2024,
  equation 2), d = Euclidean distance / sqrt(F), in 0..1 because every feature is.
- soft_z: exp(-d^2 / (2 m)) to the power q, d the Euclidean distance of z-scored features and m the median of d^2 over
  all pairs of different things in the global batch (the median heuristic of kernel methods). Here half of all pairs
  lie above exp(-q / 2) whatever the features and their units are, so no exponent has to be found for a corpus.

A soft target is built in two steps: a raw similarity and the monotone map that sharpens it (`Similarity`).

However sharp, a soft target over hundreds of columns leaves little on the own pair, and little mass means collapse.
`fix_positive_mass` rescales the others so that own pairs hold an exact part of each row.

Whether soft targets carry any signal shows in their distribution: raw cosines squeezed just below 1 make every target
1, and a sharpening that is too strong makes every target 0. So each step counts the raw similarities of all pairs of
different things in a histogram, which adds up over ranks, and reads quantiles off it. The bins are fine where raw
cosines lie: they are those of 1 - s, each 1/128 of a power of two wide, so that a quantile q is known to (1 - q) / 256
near 1 and to 0.004 everywhere. The sharpening never turns the order around, so quantiles of the sharpened similarities
are sharpened quantiles.

Contract of the histograms: raw similarities lie in 0..1; counts are float64 (BINS,), exact, the same on every number of
ranks once summed; without a pair every quantile is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from beatray.objectives.contrast import own_columns, unseen
from beatray.objectives.reduce import bin_counts, median_over_ranks
from beatray.objectives.row_chunks import rows_of_a_chunk
from beatray.objectives.statistics import FeatureTable

QUANTILES = (5, 25, 50, 75, 95)
"""Per cent."""

_MANTISSA = 16  # bits of a float32 that are left out: 7 of 23 remain, 128 bins between powers of two
_LOWEST = 0x35800000 >> _MANTISSA  # 2^-20 as float32: what is nearer to 1 counts as 1
_HIGHEST = 0x3F800000 >> _MANTISSA  # 1.0
BINS = _HIGHEST - _LOWEST + 1


class Features(nn.Module):
    """Feature vectors made comparable: missing values become corpus means; ranges scale to 0..1, SDs to 1."""

    mean: Tensor
    sd: Tensor
    low: Tensor
    span: Tensor

    def __init__(self, table: FeatureTable) -> None:
        super().__init__()
        span = table.max - table.min
        # not persistent: they belong to the corpus, which hands them over again on a resume
        self.register_buffer("mean", torch.as_tensor(table.mean, dtype=torch.float32), persistent=False)
        self.register_buffer("sd", torch.as_tensor(table.sd, dtype=torch.float32), persistent=False)
        self.register_buffer("low", torch.as_tensor(table.min, dtype=torch.float32), persistent=False)
        self.register_buffer("span", torch.as_tensor(span, dtype=torch.float32), persistent=False)

    def impute(self, values: Tensor) -> Tensor:
        """(n, F) with NaN where missing -> (n, F) without, of the type of the module."""
        return torch.where(torch.isfinite(values), values.to(self.mean.dtype), self.mean)

    def scale(self, values: Tensor) -> Tensor:
        """(n, F) imputed -> (n, F) in 0..1 of the corpus range; a constant feature is 0."""
        return ((values - self.low) / torch.where(self.span > 0, self.span, 1.0)).clamp(0.0, 1.0)

    def standardise(self, values: Tensor) -> Tensor:
        """(n, F) imputed -> (n, F) in SDs from the mean of the corpus; a constant or missing one is 0."""
        return (values - self.mean) / torch.where(self.sd > 0, self.sd, torch.inf)


@dataclass(frozen=True, slots=True)
class Similarity:
    """Raw similarities (R, M) of own rows and global columns, and the monotone map from them to soft targets."""

    raw: Tensor
    sharpen: Callable[[Tensor], Tensor]

    def targets(self, own: Tensor, dtype: torch.dtype) -> Tensor:
        """Soft targets (R, M) of type `dtype`: the sharpened similarity, 1 for own pairs."""
        return self.sharpen(self.raw).to(dtype).masked_fill(own, 1.0)


MaskOf = Callable[[Tensor], Tensor]
"""From the columns (R,) that some rows are to pairs of them with all columns, (R, M) bool."""


def others_histogram(raw: Tensor, own: Tensor, self_index: Tensor, there: Tensor | None = None) -> Tensor:
    """Counts of raw similarities (R, M) of pairs that are neither the row itself nor its own pair: (BINS,) float64."""
    apart = (1.0 - raw).to(torch.float32).clamp(0.0, 1.0)
    bin_index = ((apart.view(torch.int32) >> _MANTISSA) - _LOWEST).clamp_min(0)
    return bin_counts(bin_index, ~(own | unseen(self_index, own.shape[1], there)), BINS).double()


def quantiles(histogram: Tensor) -> Tensor:
    """Similarities at `QUANTILES` from summed counts (BINS,): (len(QUANTILES),) float64, ascending; NaN without pairs.

    The q-quantile is the middle of the bin that holds the pair of rank ceil(q n).
    """
    below = histogram.flip(0).cumsum(0)  # bins from similarity 0 up to 1
    rank = torch.stack([below[-1] * (level / 100.0) for level in QUANTILES]).ceil().clamp_min(1.0)
    bin_index = BINS - 1 - torch.searchsorted(below, rank).clamp_max(BINS - 1)
    middle = (
        (((bin_index + _LOWEST) << _MANTISSA) + (1 << (_MANTISSA - 1))).to(torch.int32).view(torch.float32).double()
    )
    middle = torch.where(bin_index == 0, 0.0, middle.clamp_max(1.0))
    return torch.where(below[-1] > 0, 1.0 - middle, torch.nan)


def own_pairs(row_id: Tensor, column_id: Tensor, self_index: Tensor) -> Tensor:
    """True where row and column are the same thing in different views: ids (R,), (M,) -> (R, M) bool."""
    return (row_id[:, None] == column_id) & ~own_columns(self_index, len(column_id))


def hard(own: Tensor) -> Tensor:
    """1 for own pairs, else 0: (R, M) bool -> float32."""
    return own.float()


def soft_1(row_features: Tensor, column_features: Tensor, exponent: float) -> Similarity:
    """Cosine of raw features (R, F), (M, F), negative ones 0, sharpened by the power `exponent`."""
    rows = nn.functional.normalize(row_features.double(), dim=1)
    columns = nn.functional.normalize(column_features.double(), dim=1)
    # in float64: a power of 50 makes 50 times the rounding of a cosine near 1
    return Similarity((rows @ columns.T).clamp(0.0, 1.0), lambda raw: raw.pow(exponent))


def soft_2(row_scaled: Tensor, column_scaled: Tensor, alpha: float, tau: float) -> Similarity:
    """1 - d of range-scaled features (R, F), (M, F), sharpened to the SoftCLT weight 2 alpha sigmoid(-tau d)."""
    distance = _distances(row_scaled, column_scaled).double() / max(row_scaled.shape[1], 1) ** 0.5
    return Similarity(1.0 - distance, lambda raw: 2.0 * alpha * torch.sigmoid(-tau * (1.0 - raw)))


def soft_z(row_z: Tensor, column_z: Tensor, width: Tensor, power: float) -> Similarity:
    """exp(-d^2 / (2 m)) of z-scored features (R, F), (M, F), sharpened by `power`; m from `kernel_width`."""
    return Similarity(torch.exp(_squared(row_z, column_z) / (-2.0 * width)), lambda raw: raw.pow(power))


def kernel_width(z: Tensor, own_of: MaskOf, self_index: Tensor, there: Tensor | None = None) -> Tensor:
    """The median of d^2 over the pairs of the global batch that are not own pairs: () float64, z (M, F) of all columns.

    Every rank must call it together, with the columns self_index (R,) that its rows are. Where most pairs are equal it
    is so small that equal things have similarity 1 and all others 0.
    """

    def part(index: Tensor) -> tuple[Tensor, Tensor]:
        return _squared(z[index], z), ~(own_of(index) | unseen(index, len(z), there))

    chunks = self_index.split(rows_of_a_chunk(len(z)))
    whole = [part(self_index)] if len(chunks) == 1 else None
    middle = median_over_ranks(lambda: map(part, chunks) if whole is None else whole, z.device)
    return middle.double().nan_to_num(1.0).clamp_min(torch.finfo(torch.float32).tiny)


def _squared(rows: Tensor, columns: Tensor) -> Tensor:
    return _distances(rows, columns).double().square()


def _distances(rows: Tensor, columns: Tensor) -> Tensor:
    """Euclidean distances (R, M), each a function of its two vectors alone: exact 0 for equal ones."""
    return torch.cdist(rows, columns, compute_mode="donot_use_mm_for_euclid_dist")


def same_class(
    own: Tensor, row_class: Tensor, column_class: Tensor, self_index: Tensor, there: Tensor | None = None
) -> Tensor:
    """1 for beats of one class, (R,) and (M,) int64, and for own pairs, else 0.

    Class -1 is unknown and matches nothing but its own pair. When one class covers the whole batch there would be no
    negatives; then own pairs alone are positive.
    """
    alike = (row_class[:, None] == column_class) & (row_class[:, None] >= 0)
    alike &= ~own_columns(self_index, len(column_class))
    if len(column_class) == 0:
        return own.float()
    lowest = highest = column_class
    if there is not None:
        ends = torch.iinfo(column_class.dtype)
        lowest, highest = column_class.masked_fill(~there, ends.max), column_class.masked_fill(~there, ends.min)
    one_class = lowest.amin() == highest.amax()
    return (own | (alike & ~one_class)).float()


def fix_positive_mass(
    targets: Tensor, own: Tensor, self_index: Tensor, positive_mass: float | None, there: Tensor | None = None
) -> Tensor:
    """Rescale other columns so that own pairs hold exactly `positive_mass` of each row; None leaves the targets be.

    Weights of own pairs stay, except that a mass of 0 takes them away and leaves the others as they are: then a view is
    drawn to records like its own, not to its own other view. Rows whose own pairs, or whose other columns, have no mass
    stay as they are. Raises ValueError for a mass below 0, or of 1 and more.
    """
    if positive_mass is None:
        return targets
    if not 0.0 <= positive_mass < 1.0:
        raise ValueError(f"positive_mass must be null, or at least 0 and below 1, not {positive_mass}")
    targets = targets.masked_fill(unseen(self_index, targets.shape[1], there), 0.0)
    own_mass = (targets * own).sum(1, keepdim=True)
    others = (targets * ~own).sum(1, keepdim=True)
    fixable = (own_mass > 0) & (others > 0)
    if positive_mass == 0.0:
        return targets.masked_fill(own & fixable, 0.0)
    share = own_mass * ((1.0 - positive_mass) / positive_mass)
    factor = torch.where(fixable, share / others.clamp_min(1e-30), 1.0)
    return torch.where(own, targets, targets * factor)
