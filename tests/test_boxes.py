"""Box functions against torchvision's, one image at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.ops import box_iou, clip_boxes_to_image

from grcn import boxes


def random_boxes(count, seed, whole=False, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=dtype) * 60
    sides = 1 + 40 * torch.rand(count, 2, generator=generator, dtype=dtype)
    found = torch.cat([corner, corner + sides], 1)
    return found.round() if whole else found


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 10**6), st.booleans(), st.booleans())
def test_iou_and_matching_equal_torchvisions(objects, candidates, seed, whole, low_quality):
    gt, found = random_boxes(objects, seed, whole), random_boxes(candidates, seed + 1, whole)
    overlaps = boxes.iou(gt, found)
    assert torch.equal(overlaps, box_iou(gt, found))
    matched = boxes.match(overlaps[None], torch.ones(1, objects, dtype=torch.bool), 0.5, 0.3, low_quality)
    if low_quality and (overlaps.max(1).values == 0).any():
        return  # torchvision then matches every candidate; see boxes.match
    assert torch.equal(matched[0], Matcher(0.5, 0.3, low_quality)(overlaps))


def test_an_object_that_nothing_overlaps_has_no_match():
    gt, found = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[20.0, 20, 30, 30], [40.0, 40, 60, 60]])
    matched = boxes.match(boxes.iou(gt, found)[None], torch.ones(1, 1, dtype=torch.bool), 0.7, 0.3, low_quality=True)
    assert matched.tolist() == [[boxes.BACKGROUND, boxes.BACKGROUND]]


def test_padding_rows_and_unusable_candidates_match_nothing():
    gt = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 0, 0]]])
    found = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]])
    valid, usable = torch.tensor([[True, False]]), torch.tensor([[False, True, True]])
    matched = boxes.match(boxes.iou(gt, found), valid, 0.95, 0.3, low_quality=True, usable=usable)
    assert matched.tolist() == [[boxes.IGNORED, 0, boxes.BACKGROUND]]
    none = boxes.match(boxes.iou(gt, found), torch.zeros(1, 2, dtype=torch.bool), 0.7, 0.3, low_quality=True)
    assert (none == boxes.BACKGROUND).all()


def test_background_may_need_some_overlap():
    gt, found = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[0.0, 0, 10, 2], [30, 30, 40, 40]])
    matched = boxes.match(boxes.iou(gt, found)[None], torch.ones(1, 1, dtype=torch.bool), 0.5, 0.5, bg_iou_low=0.1)
    assert matched.tolist() == [[boxes.BACKGROUND, boxes.IGNORED]]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(0, 10**6))
def test_coding_equals_torchvisions_and_inverts(count, seed):
    weights = (10.0, 10.0, 5.0, 5.0)
    gt, found = random_boxes(count, seed), random_boxes(count, seed + 1)
    coder = BoxCoder(weights)
    deltas = boxes.encode(gt, found, weights)
    assert_close(deltas, coder.encode_single(gt, found), rtol=1e-9, atol=1e-9)
    assert_close(boxes.decode(deltas, found, weights), gt)
    wild = deltas * 20
    assert_close(boxes.decode(wild, found, weights), coder.decode_single(wild, found), rtol=1e-9, atol=1e-9)


def test_clipping_equals_torchvisions_and_removes_nan():
    found = random_boxes(20, 3) - 20
    assert torch.equal(
        boxes.clip(found[None], torch.tensor([[40.0, 50.0]]).double())[0], clip_boxes_to_image(found, (40, 50))
    )
    wild = torch.tensor([[[float("nan"), 0, float("inf"), 5], [-float("inf"), 0, 3, float("nan")]]])
    assert boxes.clip(wild, torch.tensor([[40.0, 50.0]])).tolist() == [[[0, 0, 50, 5], [0, 0, 3, 0]]]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 20),
    st.integers(0, 60),
    st.integers(0, 20),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 9**9),
)
def test_sampling_takes_what_torchvisions_sampler_would(fg, bg, ignored, count, max_fg, seed):
    if fg + bg + ignored == 0:
        return
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.arange(fg), torch.full((bg,), -1), torch.full((ignored,), -2)])
    labels = labels[torch.randperm(len(labels), generator=generator)][None]
    keys = torch.randint(2**62, labels.shape, generator=generator)
    index, taken, foreground = boxes.sample(labels, keys, count, max_fg)
    num_fg = min(fg, max_fg, count)
    assert index.shape == taken.shape == foreground.shape == (1, count)
    assert foreground[0].tolist() == [slot < num_fg for slot in range(count)]
    assert taken.sum() == num_fg + min(bg, count - num_fg)
    drawn = labels[0, index[0]]
    assert (drawn[foreground[0]] >= 0).all() and (drawn[taken[0] & ~foreground[0]] == -1).all()
    assert index[0, taken[0]].unique().numel() == taken.sum()


def test_sampling_is_uniform():
    labels = torch.full((2000, 10), -1)
    keys = torch.randint(2**62, labels.shape, generator=torch.Generator().manual_seed(0))
    index, _, _ = boxes.sample(labels, keys, 3, 1)
    share = torch.bincount(index.flatten(), minlength=10) / 2000
    assert_close(share, torch.full((10,), 0.3), rtol=0, atol=0.04)


@pytest.mark.parametrize("counts, slots", [((0, 0), 1), ((1, 0), 1), ((2, 3), 4), ((5, 8), 8)])
def test_padding_to_a_power_of_two(counts, slots):
    targets = [{"boxes": torch.ones(n, 4), "labels": torch.full((n,), 3)} for n in counts]
    found, labels, valid = boxes.pad_objects(targets)
    assert found.shape == (2, slots, 4) and labels.shape == valid.shape == (2, slots)
    assert valid.sum(1).tolist() == list(counts)
    assert (labels == 3 * valid).all() and (found.sum(-1) == 4 * valid).all()
