"""Every mode: shapes, determinism, what it reads and what it must not see."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from wam_video.data.processor import WAMProcessor
from wam_video.data.video import resize
from wam_video.errors import ConfigError
from wam_video.flow.modes import MODES, Role
from wam_video.inference.outputs import WAMOutput
from wam_video.inference.pipeline import WAMPipeline
from wam_video.models import video_codec
from wam_video.tensors import Batch, Mode, Prediction, to_unit_range
from wam_video.testing import fake_batch, tiny_pipeline

ALL = [mode.value for mode in Mode]
GIVES_ACTIONS = ("policy", "inverse", "joint")
GIVES_VIDEO = ("forward", "video", "joint")


def quiet(**options) -> WAMPipeline:
    pipeline = tiny_pipeline(**options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def pipeline() -> WAMPipeline:
    return quiet()


def same(a: WAMOutput, b: WAMOutput) -> bool:
    pairs = [(a.actions, b.actions), (a.video, b.video)]
    return all((x is None) == (y is None) and (x is None or np.array_equal(x, y)) for x, y in pairs)


def arguments(batch: Batch, mode: str, rows: slice = slice(None)) -> dict:
    """The same windows as a caller would hand them in."""
    k = batch.video.shape[3] if mode == "inverse" else batch.num_context_frames
    video = batch.video[rows, :, :, :k].permute(0, 1, 3, 4, 5, 2).numpy()
    found = {"video": video, "state": [s[m] for s, m in zip(batch.state[rows], batch.state_mask[rows], strict=True)]}
    found |= {"prompt": list(batch.prompts[rows]), "embodiment": list(batch.embodiments[rows])}
    if mode == "forward":
        found["actions"] = [a[:, m[0]] for a, m in zip(batch.actions[rows], batch.action_mask[rows], strict=True)]
    return found


@pytest.mark.parametrize("codec", ["pixel", "wan"])
@pytest.mark.parametrize("mode", ALL)
def test_a_mode_gives_what_its_row_says_in_shape_range_and_type(codec: str, mode: str) -> None:
    pipeline = quiet(codec=codec, views=2)
    batch = fake_batch(pipeline, 2)
    output = pipeline.predict(batch, mode, generator=0)
    window = pipeline.processor.window
    assert (output.actions is not None) == (mode in GIVES_ACTIONS)
    assert (output.video is not None) == (mode in GIVES_VIDEO)
    if output.actions is not None:
        assert output.actions.shape == (2, window.action_horizon, 5)
        assert output.actions.dtype == np.float32
        assert np.isfinite(output.actions).all()
        assert not output.actions[0, :, 2:].any(), "the first body has two dimensions"
    if output.video is not None:
        assert output.video.shape == (2, 2, window.num_future_frames, 3, 16, 16)
        assert output.video.dtype == np.float32
        assert output.video.min() >= 0 <= 1 - output.video.max()
        assert not output.video[1, 1].any(), "the second body has one camera"


@pytest.mark.parametrize("mode", ALL)
def test_a_call_and_recorded_windows_are_the_same_thing(pipeline: WAMPipeline, mode: str) -> None:
    batch = fake_batch(pipeline, 4)
    called = pipeline(mode, **arguments(batch, mode), generator=[1, 2, 3, 4])
    assert same(called, pipeline.predict(batch, mode, generator=[1, 2, 3, 4]))


@pytest.mark.parametrize("mode", ALL)
def test_a_row_does_not_depend_on_its_neighbours(pipeline: WAMPipeline, mode: str) -> None:
    batch = fake_batch(pipeline, 4)
    whole = pipeline(mode, **arguments(batch, mode), generator=[1, 2, 3, 4])
    alone = pipeline(mode, **arguments(batch, mode, slice(2, 3)), generator=[3])
    if alone.actions is not None:
        width = alone.actions.shape[-1]
        np.testing.assert_allclose(whole.actions[2:3, :, :width], alone.actions, atol=1e-5)
    if alone.video is not None:
        np.testing.assert_allclose(whole.video[2:3], alone.video, atol=1e-5)


@pytest.mark.parametrize("mode", ALL)
def test_what_a_mode_may_not_see_changes_no_bit_and_what_it_reads_does(pipeline: WAMPipeline, mode: str) -> None:
    batch, other = fake_batch(pipeline, 2), fake_batch(pipeline, 2, seed=9)
    k, spec = batch.num_context_frames, MODES[Mode(mode)]
    before = pipeline.predict(batch, mode, generator=[1, 2])
    future = replace(batch, video=torch.cat([batch.video[:, :, :, :k], other.video[:, :, :, k:]], dim=3))
    past = replace(batch, video=torch.cat([other.video[:, :, :, :k], batch.video[:, :, :, k:]], dim=3))
    actions = replace(batch, actions=other.actions)
    assert same(before, pipeline.predict(future, mode, generator=[1, 2])) == (spec.video is not Role.GIVEN)
    assert same(before, pipeline.predict(actions, mode, generator=[1, 2])) == (spec.actions is not Role.GIVEN)
    assert not same(before, pipeline.predict(past, mode, generator=[1, 2]))
    assert not same(before, pipeline.predict(replace(batch, state=other.state), mode, generator=[1, 2]))
    assert not same(before, pipeline.predict(replace(batch, prompts=("x", "y")), mode, generator=[1, 2]))
    assert not same(before, pipeline.predict(batch, mode, generator=[1, 3]))


def test_absent_dimensions_and_cameras_are_never_read() -> None:
    pipeline = quiet(views=2)
    batch = fake_batch(pipeline, 2)
    video, actions = batch.video.clone(), batch.actions.clone()
    video[1, 1], actions[0, :, 2:] = 200, 50.0
    altered = replace(batch, video=video, actions=actions)
    for mode in ("forward", "joint"):
        a, b = (pipeline.predict(x, mode, generator=0, output_type="pt").video[:, 0] for x in (batch, altered))
        assert torch.equal(a, b)


def recorded_calls(pipeline: WAMPipeline, monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    calls, forward = [], pipeline.transformer.forward

    def spy(**inputs) -> Prediction:
        calls.append(inputs)
        return forward(**inputs)

    monkeypatch.setattr(pipeline.transformer, "forward", spy)
    return calls


@pytest.mark.parametrize("mode", ALL)
def test_given_tokens_stay_at_clock_zero_and_unknown_ones_are_noise_throughout(
    pipeline: WAMPipeline, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    batch, spec = fake_batch(pipeline, 2), MODES[Mode(mode)]
    clean = video_codec.encode(pipeline.vae, to_unit_range(batch.video))
    calls = recorded_calls(pipeline, monkeypatch)
    pipeline.predict(batch, mode, generator=0, num_inference_steps=3)
    assert len(calls) == 3
    for step, call in enumerate(calls):
        assert torch.equal(call["latents"][:, :, :, :2], clean[:, :, :, :2])
        assert not call["t_video"][:, :2].any()
        for role, clock in ((spec.video, call["t_video"][:, 2:]), (spec.actions, call["t_action"])):
            wanted = {Role.GIVEN: 0.0, Role.UNKNOWN: 1.0, Role.GENERATE: 1 - step / 3}[role]
            assert torch.allclose(clock, torch.full_like(clock, wanted))
        if spec.video is Role.UNKNOWN:
            assert torch.equal(call["latents"], calls[0]["latents"])
        if spec.video is Role.GIVEN:
            assert torch.equal(call["latents"], clean)


def test_older_frames_may_be_left_out_and_are_then_unknown(
    pipeline: WAMPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = fake_batch(pipeline, 2)
    inputs = arguments(batch, "policy")
    inputs["video"] = inputs["video"][:, :, 1:]
    calls = recorded_calls(pipeline, monkeypatch)
    short = pipeline("policy", **inputs, generator=0)
    assert calls[0]["t_video"][:, :2].tolist() == [[1.0, 0.0]] * 2
    mask = batch.frame_mask.clone()
    mask[:, :, 0] = False
    video = batch.video.clone()
    video[:, :, :, 0] = 0
    assert same(short, pipeline.predict(replace(batch, frame_mask=mask, video=video), "policy", generator=0))


def test_the_ways_to_act(pipeline: WAMPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = fake_batch(pipeline, 2)
    calls = recorded_calls(pipeline, monkeypatch)
    outputs = {p: pipeline.predict(batch, "policy", generator=0, policy_path=p) for p in ("unknown", "absent", "joint")}
    assert [call["latents"].shape[3] for call in calls] == [4, 4, 2, 2, 4, 4]
    assert all(output.video is None for output in outputs.values())
    assert len({output.actions.tobytes() for output in outputs.values()}) == 3
    joint = pipeline.predict(batch, "joint", generator=0)
    np.testing.assert_array_equal(outputs["joint"].actions, joint.actions)


def test_committed_actions_come_back_unchanged_and_change_the_rest(
    pipeline: WAMPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = fake_batch(pipeline, 2)
    inputs = arguments(batch, "policy", slice(0, 1))
    prefix = np.array([[0.3, -0.7], [1.1, 0.2]], np.float32)
    calls = recorded_calls(pipeline, monkeypatch)
    with_prefix = pipeline("policy", **inputs, committed_actions=prefix, generator=0).actions
    assert calls[0]["t_action"].tolist() == [[0.0, 0.0, 1.0, 1.0]]
    without = pipeline("policy", **inputs, generator=0).actions
    np.testing.assert_array_equal(with_prefix[0, :2], prefix)
    assert (with_prefix[0, 2:] != without[0, 2:]).all()


def test_a_shorter_horizon_of_one_body_bounds_what_it_gives_and_takes() -> None:
    pipeline = quiet()
    config = dict(pipeline.processor.config)
    window = {**config["window"], "action_horizons": {"arm": 3}}
    pipeline.processor = type(pipeline.processor)(config["embodiments"], config["stats"], window=window)
    batch = fake_batch(pipeline, 2)
    inputs = arguments(batch, "policy", slice(0, 1))
    assert pipeline("policy", **inputs, generator=0).actions.shape == (1, 3, 2)
    with pytest.raises(ConfigError, match="actions have 4 steps; allowed: exactly 3"):
        pipeline("forward", **inputs, actions=np.zeros((4, 2), np.float32))
    assert not pipeline.predict(batch, "policy", generator=0).actions[0, 3:].any()


def test_guidance_is_the_stated_mixture_and_costs_nothing_at_one(
    pipeline: WAMPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = fake_batch(pipeline, 2)
    options = {"generator": 0, "num_inference_steps": 1, "output_type": "latent"}
    prompted = pipeline.predict(batch, "joint", **options)
    empty = pipeline.predict(replace(batch, prompts=("", "")), "joint", **options)
    calls = recorded_calls(pipeline, monkeypatch)
    guided = pipeline.predict(batch, "joint", guidance_scale={"video": 3.0, "actions": 1.5}, **options)
    pipeline.predict(batch, "joint", guidance_scale=1.0, **options)
    assert [len(call["latents"]) for call in calls] == [4, 2]
    # one step from noise is linear in the velocity, and so is the mixture
    torch.testing.assert_close(guided.video, empty.video + 3.0 * (prompted.video - empty.video), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        guided.actions, empty.actions + 1.5 * (prompted.actions - empty.actions), atol=1e-4, rtol=1e-4
    )


def test_one_generator_serves_the_samples_in_turn(pipeline: WAMPipeline) -> None:
    batch = fake_batch(pipeline, 2)
    one = pipeline.predict(batch, "joint", generator=torch.Generator().manual_seed(7))
    alone = pipeline("joint", **arguments(batch, "joint", slice(0, 1)), generator=7)
    np.testing.assert_allclose(one.video[:1], alone.video, atol=1e-5)
    assert not same(one, pipeline.predict(batch, "joint", generator=[7, 7]))


def test_floats_and_bytes_and_a_missing_batch_axis_mean_the_same(pipeline: WAMPipeline) -> None:
    inputs = arguments(fake_batch(pipeline, 1), "policy")
    whole = pipeline("policy", **inputs, generator=0)
    floats = np.moveaxis(inputs["video"], -1, -3).astype(np.float32) / 255
    single = inputs | {"state": np.asarray(inputs["state"][0]), "prompt": inputs["prompt"][0], "embodiment": "arm"}
    np.testing.assert_allclose(
        pipeline("policy", **(inputs | {"video": floats}), generator=0).actions, whole.actions, atol=1e-5
    )
    assert same(whole, pipeline("policy", **(single | {"video": inputs["video"][0]}), generator=0))
    assert same(whole, pipeline("policy", **(single | {"video": torch.from_numpy(inputs["video"][0])}), generator=0))


def test_frames_of_another_size_are_resized_as_datasets_are(pipeline: WAMPipeline) -> None:
    inputs = arguments(fake_batch(pipeline, 1), "policy")
    large = inputs["video"].repeat(2, axis=3).repeat(2, axis=4)
    assert same(
        pipeline("policy", **inputs, generator=0), pipeline("policy", **(inputs | {"video": large}), generator=0)
    )


def test_frames_of_another_shape_are_resized_as_the_bodys_own_data_were() -> None:
    padded = quiet()
    inputs = arguments(fake_batch(padded, 1), "policy")
    wide = np.concatenate([inputs["video"], 255 - inputs["video"]], axis=-2)
    outputs = {}
    for fit in ("pad", "crop", "stretch"):
        config = dict(padded.processor.config) | {"fit": {"arm": fit}}
        other = WAMPipeline(**(padded.components | {"processor": WAMProcessor.from_config(config)}))
        other.set_progress_bar_config(disable=True)
        small = np.stack([resize(frame, 16, 16, fit) for frame in wide.reshape(-1, *wide.shape[-3:])])
        outputs[fit] = other("policy", **(inputs | {"video": wide}), generator=0)
        alike = inputs | {"video": small.reshape(inputs["video"].shape)}
        assert same(outputs[fit], other("policy", **alike, generator=0))
    assert not same(outputs["pad"], outputs["crop"])
    assert not same(outputs["pad"], outputs["stretch"])


def test_the_callback_sees_every_step_and_may_stop_the_run(pipeline: WAMPipeline) -> None:
    batch, seen = fake_batch(pipeline, 1), []

    def look(pipe, step, clocks, tensors) -> None:
        seen.append((pipe is pipeline, step, clocks.tolist(), sorted(tensors)))

    pipeline.predict(batch, "joint", generator=0, callback_on_step_end=look)
    assert seen == [(True, 0, [0.5, 0.5], ["actions", "latents"]), (True, 1, [0.0, 0.0], ["actions", "latents"])]


def test_text_may_come_encoded(pipeline: WAMPipeline) -> None:
    batch = fake_batch(pipeline, 2)
    bare = WAMPipeline(**{**pipeline.components, "text_encoder": None, "tokenizer": None})
    bare.set_progress_bar_config(disable=True)
    from wam_video.models.text import encode_text

    with torch.no_grad():
        embeds = encode_text(pipeline.tokenizer, pipeline.text_encoder, batch.prompts)
    assert same(
        pipeline.predict(batch, "joint", generator=0), bare.predict(batch, "joint", generator=0, prompt_embeds=embeds)
    )
    with pytest.raises(ConfigError, match="no text encoder"):
        bare.predict(batch, "joint")


def test_a_half_precision_network_runs_every_mode() -> None:
    pipeline = quiet().to(dtype=torch.bfloat16)
    for mode in ALL:
        output = pipeline.predict(fake_batch(pipeline, 2), mode, generator=0)
        assert all(
            x is None or (x.dtype == np.float32 and np.isfinite(x).all()) for x in (output.actions, output.video)
        )


def test_a_model_that_is_told_relative_actions_returns_the_robots_own_and_needs_the_state():
    pipe = tiny_pipeline()
    plain = pipe.processor.config
    first, *others = (dict(body) for body in plain.embodiments)
    width = min(first["action_dim"], first["state_dim"])
    first |= {
        "action_names": [f"a{i}" for i in range(first["action_dim"])],
        "state_names": [f"a{i}" for i in range(first["state_dim"])],
        "action_kinds": ["absolute"] * first["action_dim"],
    }
    kinds = {f"a{i}": "relative" for i in range(width)}
    told = WAMProcessor([first, *others], plain.stats, window=plain.window, actions={first["name"]: kinds})
    batch = fake_batch(pipe, batch_size=1)
    assert batch.embodiments == (first["name"],)
    past = batch.video[:, :, :, : batch.num_context_frames].permute(0, 1, 3, 4, 5, 2).numpy()
    call = {"mode": "policy", "video": past, "embodiment": first["name"], "num_inference_steps": 2, "output_type": "pt"}
    state = batch.state[:, : first["state_dim"]]
    recorded = pipe(**call, state=state.numpy(), generator=torch.Generator().manual_seed(0)).actions
    pipe.register_modules(processor=told)
    relative = pipe(**call, state=state.numpy(), generator=torch.Generator().manual_seed(0)).actions
    recorded[..., :width] += state[:, None, :width]  # the same words, said from the state on
    assert torch.allclose(relative, recorded, atol=1e-4)
    with pytest.raises(ConfigError, match="state"):
        pipe(**call, generator=torch.Generator().manual_seed(0))
