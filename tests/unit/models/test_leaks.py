"""What a token group reaches: with each rule, perturbing it moves exactly the outputs that it should, the others not a bit."""

from typing import Any

import pytest
import torch

from tests.unit.models.test_kv_cache import CONTEXT, PER, SIZE, forced, network, spans, window
from wam_video.models.chunks import History
from wam_video.models.transformer import WAMTransformer

CHUNKS = 3
FASTWAM = {"video_sees_actions": False, "actions_see_video": "observed"}
LINGBOT = {"action_history": True}
REACHES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "dreamzero": (
        {"state_sees": "self"},
        {
            "context": "V1 A1 V2 A2 V3 A3",
            "clean1": "V2 A2 V3 A3",
            "clean2": "V3 A3",
            "video2": "V2 A2",
            "actions2": "V2 A2",
        }
        | {"state2": "V2 A2", "video1": "V1 A1", "actions3": "V3 A3"},
    ),
    "fastwam": (
        FASTWAM,
        {"context": "V1 A1 V2 A2 V3 A3", "clean1": "V2 A2 V3 A3", "clean2": "V3 A3", "video2": "V2", "actions2": "A2"}
        | {"state2": "A2", "video1": "V1", "actions3": "A3"},
    ),
    "lingbot_va": (
        LINGBOT,
        {
            "context": "V1 A1 V2 A2 V3 A3",
            "clean1": "V2 A2 V3 A3",
            "past_actions1": "V2 A2 V3 A3",
            "past_actions2": "V3 A3",
        }
        | {"video2": "V2 A2", "actions2": "V2 A2", "state2": "V2 A2"},
    ),
    "observed_both_ways": (
        {"actions_see_video": "observed", "action_history": True},
        {
            "video2": "V2",
            "actions2": "V2 A2",
            "state2": "V2 A2",
            "past_actions1": "V2 A2 V3 A3",
            "clean1": "V2 A2 V3 A3",
        },
    ),
}


def perturbed(w: dict[str, Any], group: str) -> dict[str, Any]:
    """The window with other numbers in one group of tokens."""
    kind, chunk = (group, 0) if group == "context" else (group[:-1], int(group[-1]))
    frames, actions = spans(chunk)
    name, where, axis = {
        "context": ("clean", frames, 3),
        "clean": ("clean", frames, 3),
        "video": ("noisy", frames, 3),
        "actions": ("actions", actions, 1),
        "past_actions": ("clean_actions", actions, 1),
        "state": ("state", slice(chunk - 1, chunk), 1),
    }[kind]
    value = w[name].clone()
    value.movedim(axis, 0)[where] += 1.0
    return w | {name: value}


def moved(model: WAMTransformer, w: dict[str, Any], group: str) -> str:
    before, after = forced(model, w), forced(model, perturbed(w, group))
    names = []
    for chunk in range(1, CHUNKS + 1):
        frames, actions = spans(chunk)
        if not torch.equal(before.video[:, :, :, frames], after.video[:, :, :, frames]):
            names.append(f"V{chunk}")
        if not torch.equal(before.actions[:, actions], after.actions[:, actions]):
            names.append(f"A{chunk}")
    return " ".join(names)


@torch.no_grad()
@pytest.mark.parametrize("rule", REACHES)
def test_a_group_reaches_what_the_rule_says_and_nothing_else(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = forced.__globals__
    for name, value in (("CHUNKS", CHUNKS), ("FRAMES", CONTEXT + SIZE * CHUNKS), ("ACTIONS", PER * CHUNKS)):
        monkeypatch.setitem(module, name, value)
    settings, reaches = REACHES[rule]
    model, w = network(settings), window()
    assert {group: moved(model, w, group) for group in reaches} == reaches


@torch.no_grad()
def test_a_noisy_first_frame_is_seen_by_nobody() -> None:
    model, w = network({}), window()
    outs = []
    for shift in (0.0, 1.0):
        values = forced_with_noisy_context(w, shift)
        outs.append(forced(model, w, **values))
    assert not torch.equal(outs[0].video[:, :, :, :CONTEXT], outs[1].video[:, :, :, :CONTEXT])
    assert torch.equal(outs[0].video[:, :, :, CONTEXT:], outs[1].video[:, :, :, CONTEXT:])
    assert torch.equal(outs[0].actions, outs[1].actions)


def forced_with_noisy_context(w: dict[str, Any], shift: float) -> dict[str, Any]:
    frames = w["clean"].shape[3] - SIZE
    noisy = w["noisy"].clone()
    noisy[:, :, :, :CONTEXT] += shift
    batch = noisy.shape[0]
    history = History(
        latents=w["clean"][:, :, :, :frames],
        t_video=torch.zeros(batch, frames),
        times=w["latent_times"][:, :frames],
        first=0,
    )
    return {"latents": noisy, "history": history}
