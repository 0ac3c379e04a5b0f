"""RoIAlign in one dimension: exact on ramps, one cell per stride, never rounded."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from beatray.models.encoder import Stage
from beatray.models.roi_align import bin_centres, roi_align_1d

STRIDE = 16
STAGE = Stage(3, STRIDE)


def ramp(cells: int = 50, rows: int = 2) -> Tensor:
    """Feature maps whose value is the input sample that the cell stands for; row r adds 10,000 r."""
    values = torch.arange(cells, dtype=torch.float64) * STRIDE
    return torch.stack([values + 10_000 * row for row in range(rows)])[:, None, :].repeat(1, 3, 1)


def test_ramp_returns_bin_centres() -> None:
    boxes = torch.tensor([[100.0, 180.0], [33.3, 477.7], [0.0, 784.0]], dtype=torch.float64)
    owner = torch.tensor([0, 1, 1])
    read = roi_align_1d(ramp(), boxes, owner, STAGE, bins=8)
    assert read.shape == (3, 3, 8)
    torch.testing.assert_close(read[:, 1], bin_centres(boxes, 8) + 10_000 * owner[:, None])
    assert bin_centres(boxes, 8)[0].tolist() == [105, 115, 125, 135, 145, 155, 165, 175]


def test_shift_by_one_stride_is_one_cell() -> None:
    fmap = torch.randn(1, 4, 60)
    boxes = torch.tensor([[200.0, 320.0]])
    owner = torch.tensor([0])
    moved = roi_align_1d(fmap.roll(1, dims=2), boxes + STRIDE, owner, STAGE)
    torch.testing.assert_close(moved, roi_align_1d(fmap, boxes, owner, STAGE))
    part_of_a_cell = roi_align_1d(fmap, boxes + 3, owner, STAGE)
    assert not torch.allclose(part_of_a_cell, roi_align_1d(fmap, boxes, owner, STAGE))


def test_outside_reads_the_last_cell() -> None:
    read = roi_align_1d(ramp(), torch.tensor([[-200.0, -100.0], [900.0, 1000.0]]), torch.tensor([0, 0]), STAGE)
    assert read[0].max() == 0.0
    assert read[1].min() == 49 * STRIDE


def test_gradient_is_that_of_linear_interpolation() -> None:
    fmap = torch.randn(2, 3, 20, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[10.0, 77.0], [40.0, 290.0], [250.0, 340.0]], dtype=torch.float64)
    owner = torch.tensor([1, 0, 0])
    assert torch.autograd.gradcheck(lambda f: roi_align_1d(f, boxes, owner, STAGE, bins=5), fmap)


def test_no_boxes_still_carry_a_gradient() -> None:
    fmap = torch.randn(2, 3, 20, requires_grad=True)
    nothing = roi_align_1d(fmap, torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64), STAGE)
    assert nothing.shape == (0, 3, 8)
    nothing.sum().backward()
    assert fmap.grad is not None
    assert fmap.grad.abs().max() == 0


def test_one_cell_and_half_precision() -> None:
    fmap = torch.full((1, 2, 1), 3.0)
    box, owner = torch.tensor([[0.0, 10.0]]), torch.tensor([0])
    assert (roi_align_1d(fmap, box, owner, STAGE) == 3.0).all()
    late = roi_align_1d(ramp(313, 1).bfloat16(), torch.tensor([[4800.0, 4960.0]]), owner, STAGE)
    assert late.dtype == torch.bfloat16
    centres = bin_centres(torch.tensor([[4800.0, 4960.0]]), 8)
    torch.testing.assert_close(late[0, 0].double(), centres[0].double(), atol=32, rtol=0)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="boxes"):
        roi_align_1d(ramp(), torch.zeros(3), torch.zeros(3, dtype=torch.int64), STAGE)


@pytest.mark.parametrize("offset", [2.0, 3.5, -4.0])
def test_an_offset_moves_what_a_cell_stands_for(offset: float) -> None:
    """Cells hold the sample they stand for: bins read their own centres, whatever the offset."""
    cells = (torch.arange(50, dtype=torch.float64) * STRIDE + offset).expand(1, 3, 50)
    boxes = torch.tensor([[100.0, 180.0], [33.3, 477.7]], dtype=torch.float64)
    owner = torch.zeros(2, dtype=torch.int64)
    read = roi_align_1d(cells, boxes, owner, Stage(3, STRIDE, offset), bins=8)
    torch.testing.assert_close(read[:, 1], bin_centres(boxes, 8))
