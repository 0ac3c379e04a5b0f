"""Tests of the slow references against closed forms: what each loss must be where it can be worked out by hand."""

from __future__ import annotations

import math

import byol_oracle
import clocs_oracle
import cpc_oracle
import ecg_fm_oracle
import jepa_oracle
import mae_oracle
import numpy as np
import physio_contrast_oracle
import pytest
import s4d_oracle
import simdino_oracle
import swav_oracle
import ts2vec_oracle
import vicreg_oracle
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


# ---------------------------------------------------------------- BYOL


def test_byol_is_zero_when_the_prediction_is_the_target(rng: np.random.Generator) -> None:
    p1, p2 = rng.normal(size=(2, 5, 6))
    assert byol_oracle.byol_loss(p1, p2, z1_target=p2, z2_target=p1) == pytest.approx(0.0, abs=1e-14)


def test_byol_crosses_the_views() -> None:
    x, y = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    assert byol_oracle.byol_loss(x, y, z1_target=x, z2_target=y) == pytest.approx(4.0, abs=1e-14)
    assert byol_oracle.byol_loss(x, y, z1_target=y, z2_target=x) == pytest.approx(0.0, abs=1e-14)
    assert byol_oracle.byol_loss(x, x, z1_target=x, z2_target=y) == pytest.approx(2.0, abs=1e-14)


def test_byol_averages_over_records() -> None:
    p = np.array([[1.0, 0.0], [1.0, 0.0]])
    target = np.array([[3.0, 4.0], [-1.0, 0.0]])  # cosines 0.6 and -1: mean -0.2
    assert byol_oracle.byol_loss(p, p, p, target) == pytest.approx(2.0 + 0.4, abs=1e-14)


def test_byol_range(rng: np.random.Generator) -> None:
    p1, p2, z1, z2 = rng.normal(size=(4, 7, 3))
    assert 0.0 <= byol_oracle.byol_loss(p1, p2, z1, z2) <= 8.0
    assert byol_oracle.byol_loss(p1, p2, -p2, -p1) == pytest.approx(8.0, abs=1e-13)


def test_byol_ignores_scale_and_the_order_of_views(rng: np.random.Generator) -> None:
    p1, p2, z1, z2 = rng.normal(size=(4, 5, 6))
    loss = byol_oracle.byol_loss(p1, p2, z1, z2)
    assert byol_oracle.byol_loss(3.0 * p1, 0.01 * p2, 1e5 * z1, 0.5 * z2) == pytest.approx(loss, abs=1e-13)
    assert byol_oracle.byol_loss(p2, p1, z2, z1) == pytest.approx(loss, abs=1e-13)


@pytest.mark.parametrize("m0", [0.9, 0.99, 0.996])
def test_byol_momentum(m0: float) -> None:
    assert byol_oracle.byol_momentum(0, 420, m0) == pytest.approx(m0, abs=1e-15)
    assert byol_oracle.byol_momentum(210, 420, m0) == pytest.approx((1.0 + m0) / 2.0, abs=1e-15)
    assert byol_oracle.byol_momentum(420, 420, m0) == 1.0
    values = [byol_oracle.byol_momentum(step, 50, m0) for step in range(51)]
    assert values == sorted(values)


def test_ema(rng: np.random.Generator) -> None:
    teacher, student = rng.normal(size=(2, 3, 4))
    before = teacher.copy()
    np.testing.assert_array_equal(byol_oracle.ema(teacher, student, 1.0), teacher)
    np.testing.assert_array_equal(byol_oracle.ema(teacher, student, 0.0), student)
    np.testing.assert_allclose(byol_oracle.ema(teacher, student, 0.75), 0.75 * teacher + 0.25 * student, atol=1e-15)
    np.testing.assert_array_equal(teacher, before)
    assert byol_oracle.ema(np.array(3), np.array(9), 0.99) == 9  # an integer counter is copied


# ---------------------------------------------------------------- CPC


def _offsets(rng: np.random.Generator, records: int, draws: int, length: int) -> NDArray[np.int64]:
    return rng.integers(1, length, size=(records, draws))


def test_cpc_by_hand() -> None:
    z = np.array([[[1.0], [2.0], [4.0]]])
    q = np.array([[[0.5], [-1.0], [100.0]]])  # q_2 has nothing to predict: unused
    # offset 1: t 0 has positive 1, negative 2; t 1 has positive 2, negative (1 + 1 + 1) mod 3 = 0
    first = math.log(math.exp(1.0) + math.exp(2.0)) - 1.0
    second = math.log(math.exp(-4.0) + math.exp(-1.0)) + 4.0
    assert cpc_oracle.cpc_loss(z, q, 1, np.array([[1]])) == pytest.approx((first + second) / 2.0, abs=1e-14)


@pytest.mark.parametrize("draws", [1, 5, 128])
def test_cpc_constant_sequence(rng: np.random.Generator, draws: int) -> None:
    records, length, k = 2, 9, 3
    z = np.repeat(rng.normal(size=(records, 1, 4)), length, axis=1)
    q = rng.normal(size=(records, length, 4))
    offsets = _offsets(rng, records, draws, length)
    assert cpc_oracle.cpc_loss(z, q, k, offsets) == pytest.approx(math.log(draws + 1), abs=1e-12)
    assert cpc_oracle.cpc_loss_all(z, q, k) == pytest.approx(math.log(length), abs=1e-12)


def test_cpc_zero_prediction(rng: np.random.Generator) -> None:
    z = rng.normal(size=(3, 8, 4))
    offsets = _offsets(rng, 3, 6, 8)
    others = np.array([[[1, 0], [2, 7]], [[0, 3], [2, 2]], [[0, 0], [1, 5]]])
    assert cpc_oracle.cpc_loss(z, 0.0 * z, 2, offsets) == pytest.approx(math.log(7), abs=1e-14)
    assert cpc_oracle.cpc_loss_all(z, 0.0 * z, 2) == pytest.approx(math.log(8), abs=1e-14)
    assert cpc_oracle.cpc_loss_batch(z, 0.0 * z, 2, offsets, others) == pytest.approx(math.log(9), abs=1e-14)


@pytest.mark.parametrize("a", [0.0, 1.0, 3.5, 12.0])
def test_cpc_one_hot_tokens(rng: np.random.Generator, a: float) -> None:
    length, k, draws = 10, 3, 7
    z = np.eye(length)[None]
    q = np.zeros_like(z)
    q[:, : length - k] = a * z[:, k:]
    loss = cpc_oracle.cpc_loss(z, q, k, _offsets(rng, 1, draws, length))
    assert loss == pytest.approx(math.log(1.0 + draws * math.exp(-a)), abs=1e-13)
    assert cpc_oracle.cpc_loss_all(z, q, k) == pytest.approx(math.log(1.0 + (length - 1) * math.exp(-a)), abs=1e-13)


def test_cpc_circular_never_draws_the_positive() -> None:
    for length in range(2, 8):
        for k in range(1, length):
            positions = cpc_oracle.circular_negatives(np.arange(1, length)[None], length, k)
            for t in range(length - k):  # all offsets together: every position but the positive, once
                assert sorted(positions[0, t].tolist()) == [n for n in range(length) if n != t + k]


def test_cpc_kinds_of_negatives_agree(rng: np.random.Generator) -> None:
    records, length, k = 3, 9, 2
    z, q = rng.normal(size=(2, records, length, 5))
    offsets = _offsets(rng, records, 6, length)
    circular = cpc_oracle.cpc_loss(z, q, k, offsets)
    positions = cpc_oracle.circular_negatives(offsets, length, k)
    assert cpc_oracle.cpc_loss_iid(z, q, k, positions) == pytest.approx(circular, abs=1e-13)
    no_others = np.zeros((records, 0, 2), dtype=np.int64)
    assert cpc_oracle.cpc_loss_batch(z, q, k, offsets, no_others) == pytest.approx(circular, abs=1e-13)
    every = np.tile(np.arange(1, length), (records, 1))
    assert cpc_oracle.cpc_loss(z, q, k, every) == pytest.approx(cpc_oracle.cpc_loss_all(z, q, k), abs=1e-13)
    records_apart = [cpc_oracle.cpc_loss(z[[b]], q[[b]], k, offsets[[b]]) for b in range(records)]
    assert circular == pytest.approx(sum(records_apart) / records, abs=1e-13)


def test_cpc_batch_reads_the_other_record() -> None:
    z = np.array([[[1.0], [2.0]], [[3.0], [5.0]]])
    q = np.ones_like(z)
    loss = cpc_oracle.cpc_loss_batch(z, q, 1, np.array([[1], [1]]), np.array([[[1, 0]], [[0, 1]]]))
    first = math.log(math.exp(2.0) + math.exp(1.0) + math.exp(3.0)) - 2.0
    second = math.log(math.exp(5.0) + math.exp(3.0) + math.exp(2.0)) - 5.0
    assert loss == pytest.approx((first + second) / 2.0, abs=1e-14)


def test_cpc_reversing_time_swaps_the_halves(rng: np.random.Generator) -> None:
    z, q_forward, q_backward = rng.normal(size=(3, 2, 8, 4))
    offsets = _offsets(rng, 2, 5, 8)
    forward = cpc_oracle.cpc_loss(z, q_forward, 3, offsets)
    backward = cpc_oracle.cpc_backward(z, q_backward, 3, offsets)
    assert forward != pytest.approx(backward, abs=1e-6)
    # the reversed record: what predicted forwards now predicts backwards, and the other way round
    assert cpc_oracle.cpc_backward(z[:, ::-1], q_forward[:, ::-1], 3, offsets) == pytest.approx(forward, abs=1e-14)
    assert cpc_oracle.cpc_loss(z[:, ::-1], q_backward[:, ::-1], 3, offsets) == pytest.approx(backward, abs=1e-14)


def test_cpc_backward_in_ordinary_time(rng: np.random.Generator) -> None:
    length, k = 7, 2
    z, q = rng.normal(size=(2, 1, length, 3))
    offsets = np.array([[1, 4]])
    terms = []
    for t in range(k, length):
        positive = float(q[0, t] @ z[0, t - k])
        scores = [positive] + [float(q[0, t] @ z[0, (t - k - d) % length]) for d in (1, 4)]
        terms.append(math.log(sum(math.exp(score) for score in scores)) - positive)
    assert cpc_oracle.cpc_backward(z, q, k, offsets) == pytest.approx(sum(terms) / len(terms), abs=1e-13)


def test_cpc_large_scores_are_finite() -> None:
    z = 1000.0 * np.eye(5)[None]
    q = np.zeros_like(z)
    q[:, :4] = -z[:, 1:]  # the positive scores -1e6, the negatives 0
    assert cpc_oracle.cpc_loss(z, q, 1, np.array([[2]])) == pytest.approx(1e6)


def test_cpc_refusals(rng: np.random.Generator) -> None:
    z, q = rng.normal(size=(2, 1, 4, 3))
    with pytest.raises(ValueError, match="k < T"):
        cpc_oracle.cpc_loss(z, q, 4, np.array([[1]]))
    for offset in (0, 4):
        with pytest.raises(ValueError, match="offsets must lie"):
            cpc_oracle.cpc_loss(z, q, 1, np.array([[offset]]))
    with pytest.raises(ValueError, match="is the positive"):
        cpc_oracle.cpc_loss_iid(z, q, 1, np.array([[[1], [0], [0]]]))
    with pytest.raises(ValueError, match="another record"):
        cpc_oracle.cpc_loss_batch(z, q, 1, np.array([[1]]), np.array([[[0, 0]]]))


# ---------------------------------------------------------------- CREMA


def _masks(rng: np.random.Generator, records: int, patches: int, hidden: int) -> NDArray[np.bool_]:
    """Exactly `hidden` masked patches per record."""
    order = rng.random((records, patches)).argsort(axis=1)
    return order.argsort(axis=1) < hidden


def test_mae_perfect_and_zero_prediction(rng: np.random.Generator) -> None:
    x = rng.normal(size=(3, 8, 5))
    masked = _masks(rng, 3, 8, 6)
    assert mae_oracle.masked_mse(x, x, masked) == 0.0
    assert mae_oracle.masked_mse(x, np.zeros_like(x), masked) == pytest.approx(np.mean(x[masked] ** 2), abs=1e-14)


def test_mae_ignores_visible_patches(rng: np.random.Generator) -> None:
    x, predicted = rng.normal(size=(2, 3, 8, 5))
    masked = _masks(rng, 3, 8, 6)
    loss = mae_oracle.masked_mse(x, predicted, masked)
    predicted[~masked] = np.nan
    assert mae_oracle.masked_mse(x, predicted, masked) == loss


def test_mae_averages_records_not_patches() -> None:
    x = np.array([[[1.0], [1.0], [1.0]], [[3.0], [3.0], [3.0]]])
    masked = np.array([[True, True, True], [False, False, True]])
    assert mae_oracle.masked_mse(x, np.zeros_like(x), masked) == pytest.approx((1.0 + 9.0) / 2.0)  # not (3 + 9) / 4


def test_mae_counts_only_what_is_real() -> None:
    x = np.array([[[1.0, 2.0], [3.0, np.nan], [np.nan, np.nan]], [[np.nan, np.nan], [7.0, 7.0], [7.0, 7.0]]])
    counted = ~np.isnan(x)
    masked = np.array([[True, True, True], [True, False, False]])
    # record 0: patches (1 + 4) / 2 and 9 / 1, the third counts as not masked; record 1 has nothing: left out
    loss = mae_oracle.masked_mse(x, np.zeros_like(x), masked, counted)
    assert loss == pytest.approx((2.5 + 9.0) / 2.0, abs=1e-14)
    with pytest.raises(ValueError, match="no record"):
        mae_oracle.masked_mse(x[1:], np.zeros_like(x[1:]), masked[1:], counted[1:])


def test_mae_all_counted_is_the_default(rng: np.random.Generator) -> None:
    x, predicted = rng.normal(size=(2, 2, 6, 4))
    masked = _masks(rng, 2, 6, 4)
    everything = np.ones(x.shape, dtype=np.bool_)
    assert mae_oracle.masked_mse(x, predicted, masked, everything) == mae_oracle.masked_mse(x, predicted, masked)


def test_normalise_patches(rng: np.random.Generator) -> None:
    x = 5.0 + 3.0 * rng.normal(size=(2, 4, 50))
    y = mae_oracle.normalise_patches(x)
    np.testing.assert_allclose(y.mean(axis=-1), 0.0, atol=1e-13)
    variance = x.var(axis=-1)
    np.testing.assert_allclose(y.var(axis=-1), variance / (variance + 1e-6), atol=1e-13)
    np.testing.assert_array_equal(mae_oracle.normalise_patches(np.full((1, 2, 4), 3.0)), 0.0)  # constant: finite


@pytest.mark.parametrize("records", [1, 2, 5])
def test_nt_xent_identical_rows(rng: np.random.Generator, records: int) -> None:
    z = np.repeat(rng.normal(size=(1, 6)), records, axis=0)
    assert mae_oracle.nt_xent(z, z, 0.1) == pytest.approx(math.log(2 * records - 1), abs=1e-12)


@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_nt_xent_orthogonal_rows(tau: float) -> None:
    z = np.eye(4)  # the partner has cosine 1, the six others 0
    assert mae_oracle.nt_xent(z, 2.0 * z, tau) == pytest.approx(math.log(1.0 + 6.0 * math.exp(-1.0 / tau)), abs=1e-13)


def test_nt_xent_symmetries(rng: np.random.Generator) -> None:
    z1, z2 = rng.normal(size=(2, 5, 6))
    loss = mae_oracle.nt_xent(z1, z2, 0.2)
    order = rng.permutation(5)
    assert mae_oracle.nt_xent(z2, z1, 0.2) == pytest.approx(loss, abs=1e-13)
    assert mae_oracle.nt_xent(z1[order], z2[order], 0.2) == pytest.approx(loss, abs=1e-13)
    assert mae_oracle.nt_xent(7.0 * z1, 0.1 * z2, 0.2) == pytest.approx(loss, abs=1e-13)


def test_crema_adds_up(rng: np.random.Generator) -> None:
    x, predicted1, predicted2 = rng.normal(size=(3, 3, 8, 5))
    z1, z2 = rng.normal(size=(2, 3, 6))
    masked1, masked2 = _masks(rng, 3, 8, 6), _masks(rng, 3, 8, 6)
    pure = mae_oracle.crema_loss(x, predicted1, predicted2, masked1, masked2, z1, z2, lam=0.0)
    errors1, errors2 = (x - predicted1) ** 2, (x - predicted2) ** 2
    assert pure == pytest.approx((errors1[masked1].mean() + errors2[masked2].mean()) / 2.0, abs=1e-13)
    whole = mae_oracle.crema_loss(x, predicted1, predicted2, masked1, masked2, z1, z2, lam=0.3, tau=0.5)
    assert whole == pytest.approx(pure + 0.3 * mae_oracle.nt_xent(z1, z2, 0.5), abs=1e-13)
    same = np.ones((3, 6))
    perfect = mae_oracle.crema_loss(x, x, x, masked1, masked2, same, same, lam=0.1)
    assert perfect == pytest.approx(0.1 * math.log(5), abs=1e-13)


# ---------------------------------------------------------------- S4D

LENGTH, N_HALF = 60, 8
INITS = {"lin": s4d_oracle.s4d_lin(N_HALF), "inv": s4d_oracle.s4d_inv(N_HALF, 2 * N_HALF)}
LOG_A = np.full(N_HALF, math.log(0.5))
both_inits = pytest.mark.parametrize("b", list(INITS.values()), ids=list(INITS))


def _complex_normal(rng: np.random.Generator) -> NDArray[np.complex128]:
    """E |C|^2 = 1."""
    pairs = rng.normal(size=(2, N_HALF)) / math.sqrt(2.0)
    return np.array(pairs[0] + 1j * pairs[1], dtype=np.complex128)


def test_s4d_inits() -> None:
    np.testing.assert_allclose(s4d_oracle.s4d_lin(3), [0.0, math.pi, 2.0 * math.pi], rtol=1e-15)
    # N 4: (4/pi)(4/1 - 1) = 12/pi and (4/pi)(4/3 - 1) = 4/(3 pi)
    np.testing.assert_allclose(s4d_oracle.s4d_inv(2, 4), [12.0 / math.pi, 4.0 / (3.0 * math.pi)], rtol=1e-15)
    assert (INITS["inv"] > 0.0).all()


@pytest.mark.parametrize("z", [complex(-5e-4, 3e-4), complex(-1e-9, 1e-9), complex(-1e-12, 0.0)])
def test_complex_expm1_near_zero(z: complex) -> None:
    series = z * (1.0 + z / 2.0 * (1.0 + z / 3.0 * (1.0 + z / 4.0 * (1.0 + z / 5.0))))
    assert abs(s4d_oracle.complex_expm1(z) - series) <= 4e-16 * abs(series)


def test_complex_expm1_away_from_zero() -> None:
    for z in (complex(-0.5, 3.0), complex(-0.1, -25.0), complex(0.3, math.pi)):
        assert abs(s4d_oracle.complex_expm1(z) - complex(np.exp(z) - 1.0)) < 1e-14


def test_s4d_one_real_mode_by_hand() -> None:
    # A = -1, C = 1: Bbar = 1 - e^-dt, k_l = 2 (1 - e^-dt) e^(-dt l)
    k = s4d_oracle.kernel(math.log(0.25), np.zeros(1), np.zeros(1), np.ones(1), 6)
    np.testing.assert_allclose(k, 2.0 * (1.0 - math.exp(-0.25)) * np.exp(-0.25 * np.arange(6)), rtol=1e-14)


@both_inits
@pytest.mark.parametrize("dt", [1e-3, 1e-2, 1e-1])
def test_s4d_recurrence_is_the_convolution(rng: np.random.Generator, b: Floats, dt: float) -> None:
    C, u = _complex_normal(rng), rng.normal(size=LENGTH)
    k = s4d_oracle.kernel(math.log(dt), LOG_A, b, C, LENGTH)
    y = s4d_oracle.recurrence(u, math.log(dt), LOG_A, b, C, 0.7)
    np.testing.assert_allclose(y, s4d_oracle.convolution(k, u, 0.7), rtol=0.0, atol=1e-12)
    np.testing.assert_allclose(y, np.convolve(k, u)[:LENGTH] + 0.7 * u, rtol=0.0, atol=1e-12)


@both_inits
def test_s4d_real_pairs_are_complex_numbers(rng: np.random.Generator, b: Floats) -> None:
    C = _complex_normal(rng)
    pairs = np.stack([C.real, C.imag], axis=-1)
    expected = s4d_oracle.kernel(-3.0, LOG_A, b, C, 20)
    np.testing.assert_array_equal(s4d_oracle.kernel(-3.0, LOG_A, b, pairs, 20), expected)


@both_inits
def test_s4d_impulse_gives_the_shifted_kernel(rng: np.random.Generator, b: Floats) -> None:
    C, u = _complex_normal(rng), np.zeros(LENGTH)
    u[17] = 1.0
    k = s4d_oracle.kernel(-3.0, LOG_A, b, C, LENGTH)
    y = s4d_oracle.recurrence(u, -3.0, LOG_A, b, C, 0.0)
    np.testing.assert_array_equal(y[:17], 0.0)
    np.testing.assert_allclose(y[17:], k[: LENGTH - 17], rtol=0.0, atol=1e-12)


@both_inits
def test_s4d_doubling_dt_samples_the_system_half_as_often(rng: np.random.Generator, b: Floats) -> None:
    # exp(2z) - 1 = (exp(z) - 1)(1 + exp(z)): a held sample of 2 dt is two equal samples of dt
    C = _complex_normal(rng)
    fine = s4d_oracle.kernel(math.log(0.02), LOG_A, b, C, 2 * LENGTH)
    coarse = s4d_oracle.kernel(math.log(0.04), LOG_A, b, C, LENGTH)
    np.testing.assert_allclose(coarse, fine[0::2] + fine[1::2], rtol=0.0, atol=1e-12)


@both_inits
def test_s4d_gain_at_rest_does_not_depend_on_dt(rng: np.random.Generator, b: Floats) -> None:
    # sum_l k_l = 2 Re sum_n Cbar_n / (1 - exp(dt A_n)) = -2 Re sum_n C_n / A_n
    C = _complex_normal(rng)
    gain = -2.0 * float(np.real(np.sum(C / (-0.5 + 1j * b))))
    for dt, length in ((0.1, 700), (0.5, 150)):  # e^(-dt length / 2) is below 1e-15
        k = s4d_oracle.kernel(math.log(dt), LOG_A, b, C, length)
        assert k.sum() == pytest.approx(gain, abs=1e-12)


@both_inits
def test_toeplitz_without_backward_kernel_is_causal(rng: np.random.Generator, b: Floats) -> None:
    C, u = _complex_normal(rng), rng.normal(size=LENGTH)
    k = s4d_oracle.kernel(-3.0, LOG_A, b, C, LENGTH)
    y = s4d_oracle.toeplitz(k, np.zeros(LENGTH), u, 0.3)
    np.testing.assert_allclose(y, s4d_oracle.recurrence(u, -3.0, LOG_A, b, C, 0.3), rtol=0.0, atol=1e-12)
    later = u.copy()
    later[31:] += 5.0
    np.testing.assert_allclose(s4d_oracle.toeplitz(k, np.zeros(LENGTH), later, 0.3)[:31], y[:31], rtol=0.0, atol=1e-12)


def test_toeplitz_by_hand() -> None:
    y = s4d_oracle.toeplitz(np.array([1.0, 2.0, 3.0]), np.array([99.0, 10.0, 20.0]), np.array([1.0, 4.0, 5.0]), 0.5)
    # y_0 = 1*1 + 10*4 + 20*5; y_1 = 1*4 + 2*1 + 10*5; y_2 = 1*5 + 2*4 + 3*1; each + u/2; the 99 is never read
    np.testing.assert_allclose(y, [141.5, 58.0, 18.5], rtol=1e-15)


def test_toeplitz_swapped_kernels_flip_time_up_to_lag_zero(rng: np.random.Generator) -> None:
    k, k_backward, u = rng.normal(size=(3, 20))
    y = s4d_oracle.toeplitz(k, k_backward, u, 0.3)
    flipped = s4d_oracle.toeplitz(k_backward, k, u[::-1], 0.3)[::-1]
    np.testing.assert_allclose(y - flipped, (k[0] - k_backward[0]) * u, rtol=0.0, atol=1e-12)


# ---------------------------------------------------------------- VICReg


def test_vicreg_constant_rows(rng: np.random.Generator) -> None:
    z = np.repeat(rng.normal(size=(1, 6)), 5, axis=0)
    assert vicreg_oracle.vicreg_loss(z, z) == pytest.approx(25.0 * 0.99, abs=1e-12)  # sqrt(1e-4) is .01
    assert vicreg_oracle.vicreg_loss(z[:1], z[:1]) == pytest.approx(25.0 * 0.99, abs=1e-12)
    assert vicreg_oracle.vicreg_loss(z, z + 2.0) == pytest.approx(25.0 * 0.99 + 100.0, abs=1e-12)


def test_vicreg_white_rows_of_variance_one() -> None:
    z = math.sqrt(1.5) * np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]) / math.sqrt(2.0)
    assert vicreg_oracle.covariance_matrix(z) == [[pytest.approx(1.0), 0.0], [0.0, pytest.approx(1.0)]]
    assert vicreg_oracle.vicreg_loss(z, z) == 0.0


def test_vicreg_by_hand() -> None:
    z1 = np.array([[0.0, 0.0], [2.0, 1.0]])  # variances 2 and 1/2, covariance 1
    z2 = np.array([[0.0, 0.0], [0.0, 0.0]])
    hinge = (1.0 - math.sqrt(0.5 + 1e-4)) / 2.0
    expected = 3.0 * (5.0 / 4.0) + 5.0 * (hinge + 0.99) / 2.0 + 7.0 * (2.0 / 2.0)
    loss = vicreg_oracle.vicreg_loss(z1, z2, invariance=3.0, variance=5.0, covariance=7.0)
    assert loss == pytest.approx(expected, abs=1e-12)


def test_vicreg_symmetries(rng: np.random.Generator) -> None:
    z1, z2 = 0.3 * rng.normal(size=(2, 7, 5))
    loss = vicreg_oracle.vicreg_loss(z1, z2)
    order, dims = rng.permutation(7), rng.permutation(5)
    assert vicreg_oracle.vicreg_loss(z2, z1) == pytest.approx(loss, abs=1e-12)
    assert vicreg_oracle.vicreg_loss(z1[order][:, dims], z2[order][:, dims]) == pytest.approx(loss, abs=1e-12)
    assert vicreg_oracle.vicreg_loss(z1 + 3.0, z2 + 3.0) == pytest.approx(loss, abs=1e-12)
    np.testing.assert_allclose(vicreg_oracle.covariance_matrix(z1), np.cov(z1.T), atol=1e-14)


# ---------------------------------------------------------------- latent prediction


def test_jepa_loss(rng: np.random.Generator) -> None:
    h = rng.normal(size=(2, 3, 4))
    assert jepa_oracle.jepa_loss(h, h) == 0.0
    assert jepa_oracle.jepa_loss(h - 0.3, h) == pytest.approx(0.3, abs=1e-14)
    assert jepa_oracle.jepa_loss(np.array([[[1.0, -2.0]]]), np.zeros((1, 1, 2))) == pytest.approx(1.5)


def test_smooth_l1(rng: np.random.Generator) -> None:
    h = rng.normal(size=(2, 3, 4))
    for offset, expected in ((0.0, 0.0), (0.5, 0.125), (1.0, 0.5), (-3.0, 2.5)):
        assert jepa_oracle.smooth_l1(h + offset, h) == pytest.approx(expected, abs=1e-13)
    assert jepa_oracle.smooth_l1(h + 1.0, h, beta=2.0) == pytest.approx(0.25, abs=1e-13)
    assert jepa_oracle.smooth_l1(h + 3.0, h, beta=2.0) == pytest.approx(2.0, abs=1e-13)


def test_layer_norm_and_data2vec_targets(rng: np.random.Generator) -> None:
    x = 4.0 + 2.0 * rng.normal(size=(2, 3, 16))
    y = jepa_oracle.layer_norm(x, 1e-6)
    np.testing.assert_allclose(y.mean(axis=-1), 0.0, atol=1e-14)
    np.testing.assert_allclose(y.var(axis=-1), x.var(axis=-1) / (x.var(axis=-1) + 1e-6), rtol=1e-13)
    np.testing.assert_array_equal(jepa_oracle.layer_norm(np.full((2, 8), 3.0), 1e-6), 0.0)
    np.testing.assert_array_equal(jepa_oracle.data2vec_targets([x], 1e-6), y)
    other = rng.normal(size=x.shape)
    expected = jepa_oracle.layer_norm((x + other) / 2.0, 1e-6)
    np.testing.assert_allclose(jepa_oracle.data2vec_targets([x, other], 1e-6), expected, atol=1e-13)
    np.testing.assert_array_equal(jepa_oracle.data2vec_targets([np.ones((1, 2, 4)), np.full((1, 2, 4), 5.0)]), 0.0)


def test_linear_momentum() -> None:
    assert jepa_oracle.linear_momentum(0, 420, 0.998, 0.9995) == 0.998
    assert jepa_oracle.linear_momentum(420, 420, 0.998, 0.9995) == pytest.approx(0.9995, abs=1e-15)
    assert jepa_oracle.linear_momentum(210, 420, 0.998, 0.9995) == pytest.approx(0.99875, abs=1e-15)


# ---------------------------------------------------------------- CLOCS


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("patients", [[1, 2, 3, 4, 5], [1, 1, 2, 2, 1], [7, 7, 7, 7, 7]])
def test_clocs_equal_embeddings(patients: list[int], symmetric: bool) -> None:
    views = [np.ones((5, 3)), np.full((5, 3), 2.0), np.ones((5, 3))]
    assert clocs_oracle.clocs_loss(views, patients, 0.1, symmetric) == pytest.approx(math.log(5.0), abs=1e-13)


@pytest.mark.parametrize("symmetric", [True, False])
def test_clocs_without_shared_patients_is_symmetric_infonce(rng: np.random.Generator, symmetric: bool) -> None:
    a, b = rng.normal(size=(2, 4, 6))
    unit = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (a, b)]
    logits = unit[0] @ unit[1].T / 0.1
    own = np.diagonal(logits)
    forward = np.log(np.exp(logits).sum(axis=1)) - own
    backward = np.log(np.exp(logits).sum(axis=0)) - own
    expected = (forward.mean() + backward.mean()) / 2.0
    loss = clocs_oracle.clocs_loss([a, b], ["p", "q", "r", "s"], 0.1, symmetric)
    assert loss == pytest.approx(float(expected), abs=1e-12)


def _clocs_parts(a: Floats, b: Floats, temperature: float) -> tuple[Floats, Floats]:
    """- log S_ij / rowsum_i and - log S_ij / colsum_j, both (B, B)."""
    unit = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (a, b)]
    logits = unit[0] @ unit[1].T / temperature
    by_rows = np.log(np.exp(logits).sum(axis=1, keepdims=True)) - logits
    by_columns = np.log(np.exp(logits).sum(axis=0, keepdims=True)) - logits
    return by_rows, by_columns


def test_clocs_terms_of_shared_patients(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(2, 3, 4))
    rows, columns = _clocs_parts(a, b, 0.2)
    diagonals = [np.diagonal(rows).mean(), np.diagonal(columns).mean()]
    published = (sum(diagonals) + rows[0, 2] + columns[2, 0]) / 4.0
    both_ways = (sum(diagonals) + (rows[0, 2] + rows[2, 0]) / 2.0 + (columns[0, 2] + columns[2, 0]) / 2.0) / 4.0
    patients = ["p", "q", "p"]
    assert clocs_oracle.clocs_loss([a, b], patients, 0.2, False) == pytest.approx(float(published), abs=1e-13)
    assert clocs_oracle.clocs_loss([a, b], patients, 0.2, True) == pytest.approx(float(both_ways), abs=1e-13)


def test_clocs_counts_each_pair_of_views_once(rng: np.random.Generator) -> None:
    views = list(rng.normal(size=(3, 5, 4)))
    patients = [1, 2, 1, 2, 2]
    pairs = [[views[0], views[1]], [views[0], views[2]], [views[1], views[2]]]
    apart = [clocs_oracle.clocs_loss(pair, patients, 0.1, False) for pair in pairs]
    loss = clocs_oracle.clocs_loss(views, patients, 0.1, False)
    assert loss == pytest.approx(sum(apart) / 3.0, abs=1e-13)
    assert max(apart) - min(apart) > 1e-3  # else the last pair alone would pass


def test_clocs_symmetric_knows_no_order(rng: np.random.Generator) -> None:
    views = list(rng.normal(size=(3, 5, 4)))
    patients = np.array([1, 2, 1, 2, 2])
    loss = clocs_oracle.clocs_loss(views, patients.tolist(), 0.1)
    order = rng.permutation(5)
    assert clocs_oracle.clocs_loss([view[order] for view in views], patients[order].tolist(), 0.1) == pytest.approx(
        loss, abs=1e-13
    )
    assert clocs_oracle.clocs_loss(views[::-1], patients.tolist(), 0.1) == pytest.approx(loss, abs=1e-13)


def test_clocs_absent_views(rng: np.random.Generator) -> None:
    views = list(rng.normal(size=(3, 4, 5)))
    patients = [1, 1, 2, 1]
    everything = [[True] * 4] * 3
    whole = clocs_oracle.clocs_loss(views, patients, 0.1)
    assert clocs_oracle.clocs_loss(views, patients, 0.1, present=everything) == whole
    present = [[True, True, False, True], [True, False, True, True], [False] * 4]
    both = [0, 3]  # views 0 and 1 have only these in common, view 2 has nothing
    expected = clocs_oracle.clocs_loss([views[0][both], views[1][both]], [1, 1], 0.1)
    changed = [views[0].copy(), views[1], np.full((4, 5), np.nan)]
    changed[0][2] = np.nan
    assert clocs_oracle.clocs_loss(changed, patients, 0.1, present=present) == pytest.approx(expected, abs=1e-14)
    with pytest.raises(ValueError, match="no pair"):
        clocs_oracle.clocs_loss(views, patients, 0.1, present=[[False] * 4] * 3)


def test_clocs_is_finite_at_a_low_temperature(rng: np.random.Generator) -> None:
    a = rng.normal(size=(4, 6))
    assert clocs_oracle.clocs_loss([a, -a], [1, 1, 2, 3], 1e-4) == pytest.approx(
        clocs_oracle.clocs_loss([a, -a], [1, 1, 2, 3], 1e-5) / 10.0, rel=1e-3
    )


# ---------------------------------------------------------------- SwAV


def test_sinkhorn_equal_scores() -> None:
    np.testing.assert_allclose(swav_oracle.sinkhorn(np.full((6, 4), 0.7), 0.05, 3), 0.25, atol=1e-14)


def test_sinkhorn_is_the_scaling_of_the_exponential(rng: np.random.Generator) -> None:
    scores = rng.uniform(-1.0, 1.0, size=(9, 5))
    plan = np.exp(scores / 0.05)
    plan /= plan.sum()
    for _ in range(3):  # marginals 1 / K of the prototypes, then 1 / B of the rows
        plan /= plan.sum(axis=0) * 5.0
        plan /= plan.sum(axis=1, keepdims=True) * 9.0
    np.testing.assert_allclose(swav_oracle.sinkhorn(scores, 0.05, 3), plan * 9.0, rtol=1e-12)


def test_sinkhorn_sums(rng: np.random.Generator) -> None:
    scores = rng.uniform(-1.0, 1.0, size=(64, 10))
    errors = []
    for iterations in (1, 3, 50, 500):
        q = swav_oracle.sinkhorn(scores, 0.05, iterations)
        np.testing.assert_allclose(q.sum(axis=1), 1.0, atol=1e-14)
        errors.append(float(np.abs(q.sum(axis=0) - 6.4).max()))
    assert errors == sorted(errors, reverse=True)
    assert errors[1] > 0.1  # three iterations do not balance the prototypes
    assert errors[-1] < 1e-9


def test_sinkhorn_invariances(rng: np.random.Generator) -> None:
    scores = rng.uniform(-1.0, 1.0, size=(12, 5))
    q = swav_oracle.sinkhorn(scores, 0.05, 3)
    per_prototype, per_row = rng.normal(size=(1, 5)), rng.normal(size=(12, 1))
    np.testing.assert_allclose(swav_oracle.sinkhorn(scores + per_prototype, 0.05, 3), q, atol=1e-12)
    assert np.abs(swav_oracle.sinkhorn(scores + per_row, 0.05, 3) - q).max() > 1e-3
    limit = swav_oracle.sinkhorn(scores, 0.05, 2000)
    np.testing.assert_allclose(swav_oracle.sinkhorn(scores + per_row, 0.05, 2000), limit, atol=1e-9)
    rows, prototypes = rng.permutation(12), rng.permutation(5)
    permuted = swav_oracle.sinkhorn(scores[rows][:, prototypes], 0.05, 3)
    np.testing.assert_allclose(permuted, q[rows][:, prototypes], atol=1e-13)
    assert np.isfinite(swav_oracle.sinkhorn(1000.0 * scores, 0.05, 3)).all()


@pytest.mark.parametrize("queued", [0, 3])
def test_swav_equal_scores(queued: int) -> None:
    queue = np.full((queued, 7), 0.2)
    loss = swav_oracle.swav_loss([np.full((4, 7), 0.5)] * 3, [queue, queue], 0.1, 0.05, 3)
    assert loss == pytest.approx(math.log(7.0), abs=1e-13)


def test_swav_swaps_assignments(rng: np.random.Generator) -> None:
    crops = list(rng.uniform(-1.0, 1.0, size=(3, 5, 4)))
    queues = list(rng.uniform(-1.0, 1.0, size=(2, 6, 4)))
    codes = [swav_oracle.sinkhorn(np.concatenate([queues[i], crops[i]]), 0.05, 3)[6:] for i in (0, 1)]
    logs = [np.log(np.exp(crop / 0.1) / np.exp(crop / 0.1).sum(axis=1, keepdims=True)) for crop in crops]

    def cross_entropy(i: int, v: int) -> float:
        return float(-(codes[i] * logs[v]).sum(axis=1).mean())

    first = (cross_entropy(0, 1) + cross_entropy(0, 2)) / 2.0
    second = (cross_entropy(1, 0) + cross_entropy(1, 2)) / 2.0
    loss = swav_oracle.swav_loss(crops, queues, 0.1, 0.05, 3)
    assert loss == pytest.approx((first + second) / 2.0, abs=1e-12)
    empty = np.zeros((0, 4))
    assert swav_oracle.swav_loss(crops, [empty, empty], 0.1, 0.05, 3) != pytest.approx(loss, abs=1e-6)


# ---------------------------------------------------------------- SimDINO


def test_coding_rate(rng: np.random.Generator) -> None:
    collapsed = np.repeat(np.eye(8)[:1], 5, axis=0)
    assert simdino_oracle.coding_rate(collapsed, 0.05) == pytest.approx(0.5 * math.log(1.0 + 8.0 / 0.05), abs=1e-12)
    assert simdino_oracle.coding_rate(collapsed, 0.05) == pytest.approx(2.5407, abs=5e-5)
    balanced = np.concatenate([np.eye(8), -np.eye(8)])
    assert simdino_oracle.coding_rate(balanced, 0.05) == pytest.approx(4.0 * math.log(1.0 + 1.0 / 0.05), abs=1e-12)
    assert simdino_oracle.coding_rate(balanced, 0.05) == pytest.approx(12.1781, abs=5e-5)
    z = rng.normal(size=(6, 4))
    expected = 0.5 * np.linalg.slogdet(np.eye(4) + 4.0 / (6.0 * 0.5) * z.T @ z)[1]
    assert simdino_oracle.coding_rate(z, 0.5) == pytest.approx(float(expected), abs=1e-12)


def test_simdino_loss(rng: np.random.Generator) -> None:
    z = rng.normal(size=(5, 4))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    rate = simdino_oracle.coding_rate(z, 0.05)
    equal = simdino_oracle.simdino_loss([z, z], [z, z, z], 0.05, 1.0, 0.3)
    assert equal == pytest.approx(-1.0 - 0.3 * rate, abs=1e-13)  # compression 1
    views = rng.normal(size=(5, 5, 4))
    views /= np.linalg.norm(views, axis=2, keepdims=True)
    teacher, student = list(views[:2]), list(views[2:])
    cosines = [(teacher[g] * student[v]).sum(axis=1).mean() for g, v in ((0, 1), (0, 2), (1, 0), (1, 2))]
    rates = [simdino_oracle.coding_rate(student[g], 0.05) for g in (0, 1)]  # the local view is not in it
    expected = -2.0 * np.mean(cosines) - 0.1 * np.mean(rates)
    assert simdino_oracle.simdino_loss(teacher, student, 0.05, 2.0, 0.1) == pytest.approx(float(expected), abs=1e-13)


def test_patch_loss(rng: np.random.Generator) -> None:
    target = rng.normal(size=(2, 3, 4))
    masked = np.array([[True, True, True], [False, False, True]])
    predicted = 2.0 * target
    assert simdino_oracle.patch_loss(predicted, target, masked) == pytest.approx(-1.0, abs=1e-14)
    predicted[1, 2] *= -1.0  # a token in four, not the only one of a record in two
    assert simdino_oracle.patch_loss(predicted, target, masked) == pytest.approx(-0.5, abs=1e-14)
    predicted[1, :2] = np.nan
    assert simdino_oracle.patch_loss(predicted, target, masked) == pytest.approx(-0.5, abs=1e-14)


# ---------------------------------------------------------------- wav2vec 2.0 in ECG-FM


def _distinct_codes(positions: int) -> NDArray[np.int64]:
    return np.stack([np.arange(positions), np.zeros(positions, dtype=np.int64)], axis=1)


def _negatives(rng: np.random.Generator, positions: int, draws: int) -> NDArray[np.int64]:
    """Draws among the other positions."""
    offsets = rng.integers(1, positions, size=(positions, draws))
    return (np.arange(positions)[:, None] + offsets) % positions


def test_masked_contrast_equal_logits(rng: np.random.Generator) -> None:
    negatives = _negatives(rng, 6, 100)
    loss = ecg_fm_oracle.masked_contrast(np.ones((6, 3)), np.ones((6, 3)), negatives, _distinct_codes(6), 0.1)
    assert loss == pytest.approx(math.log(101.0), abs=1e-12)


def test_masked_contrast_leaves_equal_codes_out(rng: np.random.Generator) -> None:
    context, quantised = rng.normal(size=(2, 6, 4))
    negatives = _negatives(rng, 6, 9)
    same = np.ones((6, 2), dtype=np.int64)
    assert ecg_fm_oracle.masked_contrast(context, quantised, negatives, same, 0.1) == 0.0
    codes = _distinct_codes(3)
    codes[2] = codes[0]
    equal = ecg_fm_oracle.masked_contrast(
        np.ones((3, 2)), np.ones((3, 2)), np.array([[1, 2], [0, 2], [0, 1]]), codes, 0.1
    )
    assert equal == pytest.approx((2.0 * math.log(2.0) + math.log(3.0)) / 3.0, abs=1e-13)
    one_group = codes.copy()
    one_group[2, 1] = 1  # the other group tells them apart
    negatives = np.array([[1, 2], [0, 2], [0, 1]])
    loss = ecg_fm_oracle.masked_contrast(np.ones((3, 2)), np.ones((3, 2)), negatives, one_group, 0.1)
    assert loss == pytest.approx(math.log(3.0), abs=1e-13)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_masked_contrast_orthogonal_targets(rng: np.random.Generator, temperature: float) -> None:
    negatives = _negatives(rng, 5, 7)
    loss = ecg_fm_oracle.masked_contrast(3.0 * np.eye(5), np.eye(5), negatives, _distinct_codes(5), temperature)
    assert loss == pytest.approx(math.log(1.0 + 7.0 * math.exp(-1.0 / temperature)), abs=1e-13)


def test_diversity(rng: np.random.Generator) -> None:
    uniform = np.full((7, 2, 320), 1.0 / 320.0)
    assert ecg_fm_oracle.diversity(uniform) == pytest.approx(3.2e-5, abs=1e-8)  # not 0, because of the 1e-7
    one_code = np.zeros((7, 2, 320))
    one_code[:, :, 3] = 1.0
    assert ecg_fm_oracle.diversity(one_code) == pytest.approx(638.0 / 640.0, abs=1e-8)
    every_code = np.eye(4)[:, None, :]  # each token sure of another code: the mean is uniform
    assert ecg_fm_oracle.diversity(every_code) == pytest.approx(0.0, abs=1e-6)
    half = np.concatenate([np.full((7, 1, 320), 1.0 / 320.0), one_code[:, :1]], axis=1)
    assert ecg_fm_oracle.diversity(half) == pytest.approx((640.0 - 320.0 - 1.0) / 640.0, abs=1e-4)
    order = rng.permutation(4)
    tokens = rng.dirichlet(np.ones(6), size=(4, 2))
    assert ecg_fm_oracle.diversity(tokens[order]) == pytest.approx(ecg_fm_oracle.diversity(tokens), abs=1e-14)


# ---------------------------------------------------------------- contrast with similar physiology


def test_physio_equal_embeddings(rng: np.random.Generator) -> None:
    features = rng.normal(size=(4, 5))
    for threshold in (-2.0, 0.25, 2.0):
        loss = physio_contrast_oracle.physio_loss(np.ones((8, 3)), features, threshold, 0.1)
        assert loss == pytest.approx(math.log(7.0), abs=1e-13)


def test_physio_above_one_is_nt_xent(rng: np.random.Generator) -> None:
    z, features = rng.normal(size=(8, 6)), rng.normal(size=(4, 5))
    loss = physio_contrast_oracle.physio_loss(z, features, 1.5, 0.1)
    assert loss == pytest.approx(mae_oracle.nt_xent(z[:4], z[4:], 0.1), abs=1e-13)


def test_physio_nothing_measured_is_nt_xent(rng: np.random.Generator) -> None:
    z = rng.normal(size=(8, 6))
    loss = physio_contrast_oracle.physio_loss(z, np.zeros((4, 5)), -2.0, 0.1)
    assert loss == pytest.approx(mae_oracle.nt_xent(z[:4], z[4:], 0.1), abs=1e-13)


def test_physio_two_similar_records() -> None:
    features = np.array([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.2]])
    z = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    rows = np.concatenate([z, z])  # a row's own other view has cosine 1, every other row 0
    total = math.log(math.e + 4.0)
    similar, alone = total - 1.0 / 3.0, total - 1.0  # positives: own and two of cosine 0; own only
    loss = physio_contrast_oracle.physio_loss(rows, features, 0.25, 1.0)
    assert loss == pytest.approx((2.0 * similar + alone) / 3.0, abs=1e-13)
    similar, alone = math.log(2.0) - math.log(math.e + 2.0), math.log(4.0) - 1.0
    ratio = physio_contrast_oracle.physio_loss(rows, features, 0.25, 1.0, ratio=True)
    assert ratio == pytest.approx((2.0 * similar + alone) / 3.0, abs=1e-13)


def test_physio_ratio_needs_negatives(rng: np.random.Generator) -> None:
    z, features = rng.normal(size=(6, 4)), np.ones((3, 2))
    with pytest.raises(ValueError, match="no row has a negative"):
        physio_contrast_oracle.physio_loss(z, features, 0.25, 0.1, ratio=True)
    assert np.isfinite(physio_contrast_oracle.physio_loss(z, features, 0.25, 0.1))


# ---------------------------------------------------------------- TS2Vec


@pytest.mark.parametrize(("records", "times"), [(4, 13), (1, 13), (4, 1), (2, 8), (3, 7)])
def test_ts2vec_equal_everywhere(records: int, times: int) -> None:
    lengths = [times]
    while lengths[-1] > 1:
        lengths.append(lengths[-1] // 2)
    assert len(lengths) == math.floor(math.log2(times)) + 1
    instances = math.log(2 * records - 1) if records > 1 else 0.0
    expected = 0.0
    for length in lengths:
        expected += 0.5 * instances + (0.5 * math.log(2 * length - 1) if length > 1 else 0.0)
    z = np.ones((records, times, 3))
    assert ts2vec_oracle.ts2vec_loss(z, z) == pytest.approx(expected / len(lengths), abs=1e-12)


def test_ts2vec_known_value() -> None:
    z = np.ones((4, 13, 2))
    assert ts2vec_oracle.ts2vec_loss(z, z) == pytest.approx(1.8762312, abs=5e-8)


def test_ts2vec_parts(rng: np.random.Generator) -> None:
    c, z = 1.3, 1.3 * np.repeat(np.eye(4)[:, None], 3, axis=1)
    assert ts2vec_oracle.instance_loss(z, z) == pytest.approx(math.log(1.0 + 6.0 * math.exp(-(c**2))), abs=1e-13)
    z = 1.3 * np.eye(5)[None]
    assert ts2vec_oracle.temporal_loss(z, z) == pytest.approx(math.log(1.0 + 8.0 * math.exp(-(c**2))), abs=1e-13)
    z1, z2 = rng.normal(size=(2, 3, 6, 2))
    assert ts2vec_oracle.ts2vec_loss(z1, z2) == pytest.approx(ts2vec_oracle.ts2vec_loss(z2, z1), abs=1e-13)
    only_instances = ts2vec_oracle.ts2vec_loss(z1, z2, alpha=0.5, temporal_unit=9)
    assert ts2vec_oracle.ts2vec_loss(z1, z2, alpha=1.0) == pytest.approx(2.0 * only_instances, abs=1e-13)
    only_times = ts2vec_oracle.ts2vec_loss(z1, z2, alpha=0.0)
    halves = [only_instances, only_times / 2.0]
    assert ts2vec_oracle.ts2vec_loss(z1, z2) == pytest.approx(sum(halves), abs=1e-13)


def test_ts2vec_temporal_unit_leaves_the_finest_levels_out(rng: np.random.Generator) -> None:
    z1, z2 = rng.normal(size=(2, 2, 6, 3))
    pooled = [ts2vec_oracle.max_pool(z) for z in (z1, z2)]
    from_level_one = ts2vec_oracle.ts2vec_loss(z1, z2, alpha=0.0, temporal_unit=1)
    assert from_level_one == pytest.approx(ts2vec_oracle.ts2vec_loss(*pooled, alpha=0.0) * 2.0 / 3.0, abs=1e-13)


def test_ts2vec_pooling_drops_an_odd_last_time(rng: np.random.Generator) -> None:
    z = rng.normal(size=(2, 7, 3))
    pooled = ts2vec_oracle.max_pool(z)
    np.testing.assert_array_equal(pooled, z[:, :6].reshape(2, 3, 2, 3).max(axis=2))


def test_soft_ts2vec(rng: np.random.Generator) -> None:
    z1, z2 = rng.normal(size=(2, 3, 6, 2))
    hard = ts2vec_oracle.ts2vec_loss(z1, z2)
    assert ts2vec_oracle.ts2vec_loss(z1, z2, instance_weights=np.eye(3)) == pytest.approx(hard, abs=1e-13)
    assert ts2vec_oracle.ts2vec_loss(z1, z2, temporal_tau=100.0) == pytest.approx(hard, abs=1e-13)
    w = np.array([[1.0, 0.2, 0.4], [0.2, 1.0, 0.1], [0.4, 0.1, 1.0]])
    same = np.ones((3, 5, 2))
    mean_row_weight = 1.0 + 2.0 * (w.sum() - 3.0) / 3.0
    loss = ts2vec_oracle.instance_loss(same, same, w)
    assert loss == pytest.approx(math.log(5.0) * mean_row_weight, abs=1e-12)
    tau, times = 0.7, 4
    row = np.array([[2.0 / (1.0 + math.exp(tau * abs(t - u))) for u in range(times)] for t in range(times)])
    mean_row_weight = 1.0 + 2.0 * (row.sum() - times) / times
    same = np.ones((2, times, 2))
    loss = ts2vec_oracle.temporal_loss(same, same, tau)
    assert loss == pytest.approx(math.log(7.0) * mean_row_weight, abs=1e-12)
    # hierarchical: the next level's tau is twice as large
    z = np.ones((1, 4, 1))
    fine, coarse = ts2vec_oracle.temporal_loss(z, z, tau), ts2vec_oracle.temporal_loss(z[:, :2], z[:, :2], 2.0 * tau)
    whole = ts2vec_oracle.ts2vec_loss(z, z, alpha=0.0, temporal_tau=tau)
    assert whole == pytest.approx((fine + coarse) / 3.0, abs=1e-13)


def test_soft_ts2vec_is_linear_in_the_weights(rng: np.random.Generator) -> None:
    z1, z2 = rng.normal(size=(2, 3, 1, 2))
    w = rng.uniform(0.0, 1.0, size=(3, 3))
    hard = ts2vec_oracle.instance_loss(z1, z2)
    added = ts2vec_oracle.instance_loss(z1, z2, w) - hard
    assert ts2vec_oracle.instance_loss(z1, z2, 3.0 * w) - hard == pytest.approx(3.0 * added, abs=1e-12)
    assert added > 0.0
