"""A long stream with a cache against everything computed anew at every decision: the same actions."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.inference.stream_reference import Episode, Recomputed
from wam_video.inference.pipeline import WAMPipeline
from wam_video.testing import tiny_pipeline

CHUNKS = 40
RECIPES: dict[str, dict[str, Any]] = {
    "dreamzero": dict(
        num_registers=0,
        attention={"pattern": "causal", "chunk_frames": 2, "state_sees": "self"},
        action_embedding="mlp_time",
        embodiment_hidden_dim=8,
        action_rope="index",
        state_clock="action",
        action_norm_out=False,
        rope_rate=1.25,
    ),
    "lingbot_va": dict(
        num_registers=0,
        attention={"pattern": "causal", "chunk_frames": 2, "action_history": True, "window": 3},
        expert={"width": 0.5, "init": "interpolate"},
    ),
    "sinks": dict(attention={"pattern": "causal", "chunk_frames": 2, "window": 2, "sink_chunks": 1}),
}
SCHEDULES = {
    "dreamzero": dict(solver="ab2", guidance_scale={"video": 5.0, "actions": 1.0}, policy_path="joint"),
    "lingbot_va": dict(
        video_steps=2, video_stop=0.4, guidance_scale={"video": 5.0, "actions": 1.0}, policy_path="joint"
    ),
    "sinks": dict(policy_path="unknown"),
}
"""As the recipes have them, but for the shift, which one tiny step would not survive."""


def pipeline(recipe: str, codec: str = "pixel") -> WAMPipeline:
    wan = codec == "wan"
    pipe = tiny_pipeline(
        codec=codec,
        num_context_frames=1,
        num_future_frames=16 if wan else 4,
        action_horizon=32 if wan else 8,
        model=RECIPES[recipe],
    )
    pipe.scheduler.register_to_config(**SCHEDULES[recipe])
    return pipe


class World:
    """Two robots of one session, their episodes written down."""

    def __init__(self, pipe: WAMPipeline, window: int | None, seed: int = 0) -> None:
        self.pipe, self.rng = pipe, np.random.default_rng(seed)
        self.window = window
        self.bodies = ("arm", "hand")
        self.prompts = ["push the block", "fold the towel"]
        self.session = pipe.stream(embodiment=self.bodies, prompt=self.prompts, window=window)
        self.reference = Recomputed(pipe, window)
        self.frames_per_chunk = self.reference.size * self.reference.factor
        self.rows = [self.fresh(row) for row in range(2)]
        self.states: list[np.ndarray] = [np.zeros(0)] * 2

    def fresh(self, row: int) -> Episode:
        return Episode(self.bodies[row])

    def see(self, rows: list[int], frames: int, actions: list[np.ndarray] | None = None) -> None:
        """Show new frames to some rows, and write down what a chunk that they complete was read under."""
        video = self.rng.integers(0, 256, (len(rows), 1, frames, 16, 16, 3), dtype=np.uint8)
        specs = [self.pipe.processor.spec(self.bodies[row]) for row in rows]
        states = [self.rng.normal(1, 0.5, spec.state_dim).astype(np.float32) for spec in specs]
        self.session.observe(video, [torch.from_numpy(state) for state in states], actions=actions, rows=rows)
        for place, row in enumerate(rows):
            self.rows[row].frames.extend(video[place].swapaxes(0, 1))
            if (len(self.rows[row].frames) - 1) % self.frames_per_chunk == 0:
                self.states[row] = states[place]
                self.rows[row].prompts.append(self.prompts[row])
            if actions is not None:
                self.rows[row].actions.extend(actions[place])

    def make(self, steps: int, row: int) -> np.ndarray:
        """Return actions that somebody else has carried out."""
        dim = self.pipe.processor.action_dim(self.bodies[row])
        return self.rng.normal(1, 0.7, (steps, dim)).astype(np.float32)

    def differ(self, seed: int, steps: int = 2) -> float:
        """Decide both ways; return the largest difference of an action, and have the robots carry the plan out."""
        out = self.session.act(generator=[seed, seed + 1], num_inference_steps=steps, decode=False).actions
        scheduler, worst = self.pipe.scheduler.config, 0.0
        for row, episode in enumerate(self.rows):
            wanted = self.reference.act(
                episode,
                self.states[row],
                self.prompts[row],
                seed=seed + row,
                path=scheduler["policy_path"],
                steps=steps,
                scale=scheduler["guidance_scale"],
            ).numpy()
            worst = max(worst, float(np.abs(out[row, :, : wanted.shape[1]] - wanted).max()))
        return worst


def chunk(world: World, rows: list[int], *, own: bool, one_by_one: bool) -> None:
    """Let a chunk pass, frame by frame or at once, with the planned actions or with others."""
    count, per = world.frames_per_chunk, world.reference.per
    done = [world.make(per, row) for row in rows]
    if own:  # the plan: written down from the session's own record of it
        for row in rows:
            plan = world.session._memory._rows[row].plan
            world.rows[row].actions.extend(plan[:, : world.make(1, row).shape[1]].numpy())
    if not one_by_one:
        world.see(rows, count, None if own else done)
        return
    for i in range(count):
        part = slice(i * per // count, (i + 1) * per // count)
        world.see(rows, 1, None if own else [each[part] for each in done])


@pytest.mark.parametrize(
    ("recipe", "window", "codec"),
    [
        ("dreamzero", 3, "pixel"),
        ("lingbot_va", None, "pixel"),
        ("sinks", None, "pixel"),
        ("dreamzero", 2, "wan"),
        ("lingbot_va", None, "wan"),
    ],
)
def test_forty_chunks_with_a_cache_are_forty_chunks_without(recipe: str, window: int | None, codec: str) -> None:
    pipe = pipeline(recipe, codec)
    world, worst = World(pipe, window), 0.0
    world.see([0, 1], 1)
    resets = 0
    for number in range(CHUNKS):
        asked = (
            number in (1, 13, 19, 26, 32, CHUNKS - 1)
            if codec == "wan"
            else number % 4 == 0 or number in (13, 18, 26, 31, CHUNKS - 1)
        )
        if asked:
            worst = max(worst, world.differ(seed=10 * number))
        if number in (12, 25):
            row = number % 2
            world.prompts[row] = f"do something else, {number}"
            world.session.prompt(world.prompts[row], rows=[row])
        if number in (17, 30):  # one robot begins anew, the other goes on
            row, resets = resets % 2, resets + 1
            world.session.reset(rows=[row])
            world.rows[row] = world.fresh(row)
            chunk(world, [1 - row], own=False, one_by_one=False)
            world.see([row], 1)
        else:
            chunk(world, [0, 1], own=asked, one_by_one=number % 5 == 0)
    assert [len(row.prompts) for row in world.rows] == [1 + CHUNKS - 18, 1 + CHUNKS - 31], (
        "chunks since each one's reset"
    )
    assert worst < 1e-5
    # The reference would notice a window that is too wide, and a prompt that never changed.
    narrow = Recomputed(pipe, 1)
    args = dict(
        seed=0, path=pipe.scheduler.config["policy_path"], steps=2, scale=pipe.scheduler.config["guidance_scale"]
    )
    right = world.reference.act(world.rows[0], world.states[0], world.prompts[0], **args)
    assert (narrow.act(world.rows[0], world.states[0], world.prompts[0], **args) - right).abs().max() > 1e-4
    world.rows[0].prompts = [""] * len(world.rows[0].prompts)
    assert (world.reference.act(world.rows[0], world.states[0], world.prompts[0], **args) - right).abs().max() > 1e-4
