"""Counts, places and clock slots of tokens."""

import torch

from wam_video.models.masks import Modality
from wam_video.models.rope import rotary_angles
from wam_video.models.tokens import (
    TokenGroup,
    TokenLayout,
    join,
    side_meta,
    side_positions,
    video_meta,
    video_positions,
)


def test_layout_counts_tokens_and_slots() -> None:
    layout = TokenLayout(views=2, frames=2, height=1, width=2, state=1, actions=2, registers=3)
    assert (layout.per_frame, layout.num_video, layout.num_side, layout.num_tokens) == (4, 8, 6, 14)
    assert layout.num_slots == 2 + 1 + 2 + 1  # the registers share theirs


def test_positions_are_time_row_and_column() -> None:
    video = video_positions(torch.tensor([[0.0, 2.0]]), views=2, height=1, width=2)[0]
    assert video[:, 0].tolist() == [0] * 4 + [2] * 4
    assert video[:4, 1:].tolist() == [[0, 0], [0, 1]] * 2
    assert side_positions(torch.tensor([[0.0, 0.5]]))[0].tolist() == [[0, 0, 0], [0.5, 0, 0]]


def test_absent_views_are_not_real() -> None:
    zero = torch.zeros(1, 2, dtype=torch.long)
    meta = video_meta(zero, zero + 1, torch.tensor([[True, False], [True, True]]), per_view=2, views=2)
    assert meta.real.tolist() == [[1, 1, 0, 0] * 2, [1] * 8]
    assert meta.noisy.tolist() == [[1] * 8] and meta.modality.eq(Modality.VIDEO).all()


def test_joined_groups_keep_their_slots_and_metadata() -> None:
    def group(modality: Modality, slots: list[int], rows: int) -> TokenGroup:
        n = len(slots)
        clocks = torch.rand(2, max(slots) + 1)
        meta = side_meta(torch.full((rows, n), int(modality)), modality)
        return TokenGroup(
            torch.rand(2, n, 4), clocks, torch.tensor(slots), rotary_angles(torch.rand(2, n, 3), 6, 1e4), meta
        )

    a, b = group(Modality.STATE, [0, 1], 1), group(Modality.ACTION, [0, 0, 1], 2)
    both = join([a, b])
    assert both.slots.tolist() == [0, 1, 2, 2, 3]
    assert torch.equal(both.clocks[:, both.slots][:, 2:], b.clocks[:, b.slots])
    assert both.meta.chunk.tolist() == [[1, 1, 2, 2, 2]] * 2 and both.rotary[0].shape[1] == 5
