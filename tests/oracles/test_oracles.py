"""Tests of the slow oracles against the closed forms of METHODS2 sections 5.1, 5.3, 5.6, 3.1 and 3.2."""

from __future__ import annotations

import math

import byol_oracle
import cpc_oracle
import mae_oracle
import numpy as np
import pytest
import s4d_oracle
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


# ---------------------------------------------------------------- BYOL, section 5.1


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


# ---------------------------------------------------------------- CPC, section 5.3


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


# ---------------------------------------------------------------- CREMA, section 5.6


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


# ---------------------------------------------------------------- S4D, sections 3.1 and 3.2

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
