"""The rule of who sees whom: against tables written by hand, and in the three forms that are derived from it."""

from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from wam_video.errors import ConfigError
from wam_video.models.masks import AttentionConfig, Modality, TokenMeta, block_mask, dense_mask, make_masks

NAMES = {"V": Modality.VIDEO, "S": Modality.STATE, "A": Modality.ACTION, "R": Modality.REGISTER}
TOKENS = "cV0 cV1 cA1 cV2 nV0 nV1 nS1 nA1 nR1 nV2 nS2 nA2".split()
"""Stream (clean, noisy), modality, chunk."""


def meta(tokens: list[str], rows: int = 1, real: Any = None) -> TokenMeta:
    chunk = torch.tensor([int(t[2:]) for t in tokens]).expand(rows, -1)
    modality = torch.tensor([int(NAMES[t[1]]) for t in tokens]).expand(rows, -1)
    noisy = torch.tensor([int(t[0] == "n") for t in tokens]).expand(rows, -1)
    return TokenMeta(chunk, modality, noisy, torch.ones_like(chunk) if real is None else real)


def seen(token: str, **rule: Any) -> str:
    config = AttentionConfig(pattern="causal", **rule)
    row = dense_mask(meta([token]), meta(TOKENS), config)[0, 0, 0]
    return " ".join(t for t, see in zip(TOKENS, row.tolist(), strict=True) if see)


@pytest.mark.parametrize(
    ("token", "rule", "expected"),
    [
        # DreamZero's table (its network, read and probed): state sees itself, a noisy first frame too
        ("cV0", {"state_sees": "self"}, "cV0"),
        ("cV1", {"state_sees": "self"}, "cV0 cV1"),
        ("nV0", {"state_sees": "self"}, "nV0"),
        ("nV1", {"state_sees": "self"}, "cV0 nV1 nS1 nA1 nR1"),
        ("nA2", {"state_sees": "self"}, "cV0 cV1 nV2 nS2 nA2"),
        ("nS1", {"state_sees": "self"}, "nS1"),
        ("nS1", {}, "cV0 nV1 nS1 nA1 nR1"),
        # FastWAM: actions see observed video only, video sees no actions
        ("nA1", {"actions_see_video": "observed"}, "cV0 nS1 nA1 nR1"),
        ("nR1", {"actions_see_video": "observed"}, "cV0 nS1 nA1 nR1"),
        ("nV1", {"video_sees_actions": False}, "cV0 nV1"),
        ("nV2", {"video_sees_actions": False, "action_history": True}, "cV0 cV1 nV2"),
        # LingBot-VA: clean actions are history too; in a chunk, video comes before the actions
        ("nV2", {"action_history": True}, "cV0 cV1 cA1 nV2 nS2 nA2"),
        ("nA2", {"action_history": True, "actions_see_video": "observed"}, "cV0 cV1 cA1 nS2 nA2"),
        ("cV1", {"action_history": True}, "cV0 cV1"),
        ("cV2", {"action_history": True}, "cV0 cV1 cA1 cV2"),
        ("cA1", {"action_history": True}, "cV0 cV1 cA1"),
        # a window of one chunk, and the first chunk kept
        ("nV2", {"window": 1}, "cV1 nV2 nS2 nA2"),
        ("nV2", {"window": 1, "sink_chunks": 1}, "cV0 cV1 nV2 nS2 nA2"),
        ("cV2", {"window": 1}, "cV1 cV2"),
    ],
)
def test_the_rule_is_what_the_table_says(token: str, rule: dict[str, Any], expected: str) -> None:
    assert seen(token, **rule) == expected


def test_without_chunks_only_what_is_not_there_is_hidden() -> None:
    real = torch.tensor([[1] * 11 + [0]])
    mask = dense_mask(meta(TOKENS), meta(TOKENS, real=real), AttentionConfig())
    assert mask.expand(1, 1, 12, 12)[0, 0].tolist() == [[True] * 11 + [False]] * 12


@pytest.mark.parametrize("rule", [{"window": 1, "sink_chunks": 1}, {"state_sees": "self", "action_history": True}])
def test_block_mask_is_the_dense_mask(rule: dict[str, Any]) -> None:
    config = AttentionConfig(pattern="causal", **rule)
    g = torch.Generator().manual_seed(0)
    query = meta(TOKENS[4:], 2)
    key = meta(TOKENS, 2, real=torch.tensor([[1, 0, 1, 1] + [1] * 8, [1, 1, 0, 0] + [1] * 8]))
    q, k, v = (torch.randn(2, 3, n, 8, generator=g) for n in (8, 12, 12))
    dense = dense_mask(query, key, config)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=dense)
    found = flex_attention(q, k, v, block_mask=block_mask(query, key, config))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert not dense.all() and not torch.equal(dense[0], dense[1])


def test_a_query_without_anything_beyond_the_gate_is_named() -> None:
    config = AttentionConfig(pattern="causal")
    video, side = meta(["cV0", "nV1"]), meta(["nS1", "nA1"])
    masks = make_masks([video, side], None, config, gated=True, flex=False)
    assert masks.sees_side is not None and masks.sees_side[0, :, 0, 0].tolist() == [False, True]
    assert isinstance(masks.side, torch.Tensor) and masks.side[0, 0].all(-1).tolist() == [True, True]
    assert isinstance(masks.whole, torch.Tensor) and masks.whole.shape == (1, 1, 2, 4)


@pytest.mark.parametrize(
    "settings",
    [
        {"pattern": "diagonal"},
        {"chunk_frames": 2},  # says nothing without chunks
        {"pattern": "causal", "chunk_frames": 0},
        {"pattern": "causal", "window": 0},
        {"pattern": "causal", "sink_chunks": 1},
        {"pattern": "causal", "state_sees": "all"},
        {"pattern": "causal", "windows": 2},
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        AttentionConfig.read(settings)
