"""An action expert from the command line to the robot: trained beside a frozen trunk, exported, and asked to act."""

from pathlib import Path

import numpy as np
import torch

from tests.integration.test_train import arguments, shards
from wam_video.cli import train as command
from wam_video.inference.pipeline import WAMPipeline
from wam_video.models.parts import part_of

__all__ = ["shards"]

EXPERT = (
    "model.expert.dim=12",
    "model.expert.ffn_dim=24",
    "model.expert.init=interpolate",
    "model.attention.video_sees_actions=false",
    "model.attention.actions_see_video=observed",
    "scheduler.policy_path=absent",
    "optim.groups.trunk=0",
    "optim.groups.conditioning=0",
    "ema.decay=0",
    "optim.lr=0.01",
)


def test_an_expert_learns_beside_a_frozen_trunk_and_acts(shards: Path, tmp_path: Path) -> None:
    folders = []
    for steps in ("3", "6"):
        output = tmp_path / steps
        more = ("steps=" + steps, "save_every=6", "optim.schedule=constant")
        command.main([*arguments(shards, output), *EXPERT, *more])
        folders.append(output / "model")
    first, second = (WAMPipeline.from_pretrained(folder) for folder in folders)
    later = second.transformer.state_dict()
    moved = {"expert": 0, "trunk": 0, "conditioning": 0}
    for name, value in first.transformer.state_dict().items():
        if part_of(name) in moved:
            moved[part_of(name)] += not torch.equal(value, later[name])
    assert moved["expert"] > 10 and moved["trunk"] == moved["conditioning"] == 0, moved
    window = second.processor.window
    frames = np.zeros((1, window.num_context_frames, 16, 16, 3), dtype=np.uint8)
    out = second("policy", frames, state=np.zeros(2), embodiment="arm", num_inference_steps=2, generator=0)
    assert out.actions.shape == (1, window.action_horizon, 2) and np.isfinite(out.actions).all()
