"""Chunk by chunk with a cache against all chunks at once: the same numbers, whatever fills the cache."""

from typing import Any

import pytest
import torch

from wam_video.errors import ConfigError
from wam_video.models.chunks import History
from wam_video.models.kv_cache import KVCache
from wam_video.models.transformer import WAMTransformer

B, V, C, H, W = 2, 2, 4, 4, 4
CONTEXT, SIZE, CHUNKS, PER = 2, 2, 4, 3
"""Latent frames of chunk 0 and of the others, chunks after it, actions of each."""
FRAMES, ACTIONS = CONTEXT + SIZE * CHUNKS, PER * CHUNKS
BODIES = [{"name": "arm", "action_dim": 3, "state_dim": 2}, {"name": "hand", "action_dim": 5, "state_dim": 2}]


@pytest.fixture(params=[1, 3])
def context(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunk 0 has fewer or more frames than the others, so that their places in a ring are not filled."""
    monkeypatch.setitem(globals(), "CONTEXT", request.param)
    monkeypatch.setitem(globals(), "FRAMES", request.param + SIZE * CHUNKS)


def network(rule: dict[str, Any], **options: Any) -> WAMTransformer:
    torch.manual_seed(0)
    sizes = dict(num_layers=2, num_attention_heads=2, attention_head_dim=12, ffn_dim=48, text_dim=16, num_registers=2)
    attention = {"pattern": "causal", "chunk_frames": SIZE} | rule
    model = WAMTransformer(embodiments=BODIES, num_views=V, in_channels=C, attention=attention, **(sizes | options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def window(seed: int = 1) -> dict[str, Any]:
    """A window with states and clocks of its own for each chunk, and clean copies of it."""
    g = torch.Generator().manual_seed(seed)
    t_video = torch.cat([torch.zeros(B, CONTEXT), torch.rand(B, FRAMES - CONTEXT, generator=g)], dim=1)
    return dict(
        clean=torch.randn(B, V, C, FRAMES, H, W, generator=g),
        noisy=torch.randn(B, V, C, FRAMES, H, W, generator=g),
        t_video=t_video,
        latent_times=(torch.arange(FRAMES) - CONTEXT + 1).expand(B, -1) * 0.25,
        clean_actions=torch.randn(B, ACTIONS, 5, generator=g),
        actions=torch.randn(B, ACTIONS, 5, generator=g),
        t_action=torch.rand(B, ACTIONS, generator=g),
        action_times=torch.arange(ACTIONS).expand(B, -1) * 0.5 / PER,
        state=torch.randn(B, CHUNKS, 2, generator=g),
        text=torch.randn(B, 6, 16, generator=g),
        embodiment=torch.tensor([0, 1]),
    )


def forced(model: WAMTransformer, w: dict[str, Any], **changes: Any) -> Any:
    """All chunks at once."""
    history_frames, history_actions = FRAMES - SIZE, ACTIONS - PER
    keeps = model.attention.action_history
    history = History(
        latents=w["clean"][:, :, :, CONTEXT:history_frames],
        t_video=torch.zeros(B, history_frames - CONTEXT),
        times=w["latent_times"][:, CONTEXT:history_frames],
        first=CONTEXT,
        actions=w["clean_actions"][:, :history_actions] if keeps else None,
        t_action=torch.zeros(B, history_actions) if keeps else None,
    )
    values = dict(
        latents=torch.cat([w["clean"][:, :, :, :CONTEXT], w["noisy"][:, :, :, CONTEXT:]], dim=3),
        text_embeds=w["text"],
        state_mask=torch.ones_like(w["state"], dtype=torch.bool),
        num_context=CONTEXT,
        history=history,
        **{k: w[k] for k in ("t_video", "latent_times", "actions", "t_action", "action_times", "state", "embodiment")},
    )
    return model(**(values | changes))


def start(model: WAMTransformer, w: dict[str, Any], chunks: int = CHUNKS, **more: Any) -> KVCache:
    return model.new_cache(
        text_embeds=w["text"],
        latent_shape=(V, C, H, W),
        num_context=CONTEXT,
        max_chunks=chunks,
        num_actions=PER,
        **more,
    )


def spans(chunk: int) -> tuple[slice, slice]:
    """Frames and actions of a chunk."""
    if chunk == 0:
        return slice(0, CONTEXT), slice(0, 0)
    first = CONTEXT + (chunk - 1) * SIZE
    return slice(first, first + SIZE), slice((chunk - 1) * PER, chunk * PER)


def observe(model: WAMTransformer, cache: KVCache, w: dict[str, Any], chunk: int, **more: Any) -> KVCache:
    frames, actions = spans(chunk)
    return model.observe(
        cache,
        latents=w["clean"][:, :, :, frames],
        t_video=torch.zeros(B, frames.stop - frames.start),
        latent_times=w["latent_times"][:, frames],
        embodiment=w["embodiment"],
        actions=w["clean_actions"][:, actions] if chunk else None,
        t_action=torch.zeros(B, PER) if chunk else None,
        action_times=w["action_times"][:, actions] if chunk else None,
        **more,
    )


def predict(model: WAMTransformer, cache: KVCache, w: dict[str, Any], chunk: int, **changes: Any) -> Any:
    frames, actions = spans(chunk)
    state = w["state"][:, chunk - 1]
    values = dict(
        latents=w["noisy"][:, :, :, frames],
        t_video=w["t_video"][:, frames],
        latent_times=w["latent_times"][:, frames],
        embodiment=w["embodiment"],
        actions=w["actions"][:, actions],
        t_action=w["t_action"][:, actions],
        action_times=w["action_times"][:, actions],
        state=state,
        state_mask=torch.ones_like(state, dtype=torch.bool),
        num_context=0,
        cache=cache,
    )
    return model(**(values | changes))


RULES = [
    {},
    {"state_sees": "self"},
    {"action_history": True},
    {"actions_see_video": "observed", "video_sees_actions": False},
    {"action_history": True, "video_sees_actions": False, "window": 2},
    {"window": 1},
    {"window": 2, "sink_chunks": 1},
    {"window": 1, "sink_chunks": 2, "action_history": True},
]
OPTIONS = [
    {},
    {"action_coupling": "gated"},
    {"action_rope": "index", "state_clock": "action", "action_embedding": "mlp_time", "embodiment_hidden_dim": 8},
    {"absolute_positions": True, "video_prediction": "sample", "residual_video": True, "num_registers": 0},
]


@torch.no_grad()
@pytest.mark.usefixtures("context")
@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "gated", "own_axes", "residual"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(rule) or "open")
def test_chunk_by_chunk_is_all_at_once(rule: dict[str, Any], options: dict[str, Any]) -> None:
    if rule.get("action_history") and options.get("action_coupling") == "gated":
        pytest.skip("refused: see test_transformer")
    model, w = network(rule, **options), window()
    whole = forced(model, w)
    cache = start(model, w)
    for chunk in range(1, CHUNKS + 1):
        cache = observe(model, cache, w, chunk - 1)
        frames, actions = spans(chunk)
        for _ in range(2):  # predicting reads only
            out = predict(model, cache, w, chunk)
            torch.testing.assert_close(out.video, whole.video[:, :, :, frames], atol=1e-5, rtol=0)
            torch.testing.assert_close(out.actions, whole.actions[:, actions], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.usefixtures("context")
@pytest.mark.parametrize("rule", [{}, {"state_sees": "self"}, {"window": 1}, {"action_history": True}], ids=str)
def test_what_is_told_of_the_first_frame_is_the_same_chunk_by_chunk(rule: dict[str, Any]) -> None:
    model, w = network(rule, condition_channels=3, image_dim=8, added_kv_proj_dim=24), window()
    g = torch.Generator().manual_seed(5)
    told = {"image_embeds": torch.randn(B, 5, 8, generator=g)}
    condition = torch.randn(B, V, 3, FRAMES, H, W, generator=g)
    whole = forced(model, w, condition=condition, **told)
    cache = start(model, w, **told)
    for chunk in range(1, CHUNKS + 1):
        before, (frames, actions) = spans(chunk - 1)[0], spans(chunk)
        cache = observe(model, cache, w, chunk - 1, condition=condition[:, :, :, before])
        out = predict(model, cache, w, chunk, condition=condition[:, :, :, frames])
        torch.testing.assert_close(out.video, whole.video[:, :, :, frames], atol=1e-5, rtol=0)
        torch.testing.assert_close(out.actions, whole.actions[:, actions], atol=1e-5, rtol=0)
    for changed in ({"condition": condition.flip(2)}, {"image_embeds": told["image_embeds"].flip(2)}):
        other = forced(model, w, **{"condition": condition, **told} | changed)
        assert (other.actions - whole.actions).abs().max() > 1e-4


@torch.no_grad()
@pytest.mark.usefixtures("context")
@pytest.mark.parametrize("rule", [{}, {"window": 1}, {"window": 2, "sink_chunks": 1, "action_history": True}])
def test_a_reset_row_starts_anew_and_the_others_keep_every_bit(rule: dict[str, Any]) -> None:
    model, w, other = network(rule), window(), window(seed=2)
    cache = start(model, w)
    for chunk in range(3):
        cache = observe(model, cache, w, chunk)
    before = predict(model, cache, w, 3)
    first = torch.tensor([True, False])
    kept = [layer.key[1].clone() for layer in cache.layers]
    cache = cache.reset(first)
    after = predict(model, cache, w, 3)
    assert torch.equal(after.video[1], before.video[1]) and torch.equal(after.actions[1], before.actions[1])
    assert not torch.equal(after.video[0], before.video[0])
    # now row 0 begins an episode of its own while row 1 stays where it is
    cache = observe(model, cache, other, 0, rows=first)
    mixed = {k: torch.cat([other[k][:1], w[k][1:]]) for k in w}
    frames, actions = spans(1)
    later_frames, later_actions = spans(3)
    for name in ("noisy", "t_video", "latent_times", "actions", "t_action", "action_times"):
        axis = 3 if name == "noisy" else 1
        theirs = (actions, later_actions) if "action" in name else (frames, later_frames)
        rows = [other[name][:1].movedim(axis, 1)[:, theirs[0]], w[name][1:].movedim(axis, 1)[:, theirs[1]]]
        mixed[name] = torch.cat(rows).movedim(1, axis)
    out = model(
        latents=mixed["noisy"],
        t_video=mixed["t_video"],
        latent_times=mixed["latent_times"],
        embodiment=mixed["embodiment"],
        actions=mixed["actions"],
        t_action=mixed["t_action"],
        action_times=mixed["action_times"],
        state=torch.stack([other["state"][0, 0], w["state"][1, 2]]),
        state_mask=torch.ones(B, 2, dtype=torch.bool),
        num_context=0,
        cache=cache,
    )
    assert cache.counts == (1, 3)
    torch.testing.assert_close(
        out.video[1], before.video[1], atol=1e-6, rtol=0
    )  # places were added: the sums are cut anew
    torch.testing.assert_close(out.actions[1], before.actions[1], atol=1e-6, rtol=0)
    for layer, bits in zip(cache.layers, kept, strict=True):
        assert torch.equal(layer.key[1], bits)
    fresh = start(model, other | {"text": torch.cat([w["text"][:1], other["text"][1:]])})
    fresh = observe(model, fresh, other, 0)
    alone = predict(model, fresh, other, 1)
    torch.testing.assert_close(out.video[0], alone.video[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(out.actions[0], alone.actions[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_another_prompt_in_one_row() -> None:
    model, w, other = network({}), window(), window(seed=2)
    cache = observe(model, start(model, w), w, 0)
    before = predict(model, cache, w, 1)
    cache = cache.with_contexts(model.contexts(other["text"], None), torch.tensor([False, True]))
    after = predict(model, cache, w, 1)
    assert torch.equal(after.video[0], before.video[0]) and not torch.allclose(after.video[1], before.video[1])


@torch.no_grad()
def test_absent_cameras_stay_hidden_in_the_cache() -> None:
    model, w = network({}), window()
    mask = torch.tensor([[True, False], [True, True]])
    outs = []
    for value in (0.0, 9.0):
        spoiled = dict(w, clean=w["clean"].clone(), noisy=w["noisy"].clone())
        spoiled["clean"][0, 1], spoiled["noisy"][0, 1] = value, value
        cache = observe(model, start(model, spoiled), spoiled, 0, view_mask=mask)
        outs.append(predict(model, cache, spoiled, 1, view_mask=mask))
    assert torch.equal(outs[0].actions, outs[1].actions) and torch.equal(outs[0].video[0, 0], outs[1].video[0, 0])


@torch.no_grad()
def test_only_the_actions_need_computing_where_video_is_absent() -> None:
    model, w = network({"actions_see_video": "observed", "video_sees_actions": False}), window()
    cache = observe(model, start(model, w), w, 0)
    with_video = predict(model, cache, w, 1)
    none = dict(latents=w["noisy"][:, :, :, :0], t_video=w["t_video"][:, :0], latent_times=w["latent_times"][:, :0])
    without = predict(model, cache, w, 1, **none)
    assert without.video is None
    torch.testing.assert_close(without.actions, with_video.actions, atol=1e-5, rtol=0)


@torch.no_grad()
def test_what_does_not_fit_is_refused() -> None:
    model, w = network({}), window()
    cache = observe(model, start(model, w, chunks=1), w, 0)
    with pytest.raises(ConfigError, match="full"):
        observe(model, cache, w, 1)
    with pytest.raises(ConfigError, match="tokens were observed"):
        observe(model, start(model, w), w | {"clean": w["clean"][:, :1]}, 0)
    with pytest.raises(ConfigError, match="num_context"):
        predict(model, cache, w, 1, num_context=1)
    with pytest.raises(ConfigError, match="prompt"):
        predict(model, cache, w, 1, text_embeds=w["text"])
    bidirectional = WAMTransformer(text_dim=16, num_layers=1)
    with pytest.raises(ConfigError, match="causal"):
        start(bidirectional, w)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"action_coupling": "gated"}])
def test_flex_attention_gives_what_the_dense_mask_gives(options: dict[str, Any]) -> None:
    model, w = network({"state_sees": "self", "window": 2, "sink_chunks": 1}, **options), window()
    dense = forced(model, w)
    cache = observe(model, observe(model, start(model, w), w, 0), w, 1)
    read = predict(model, cache, w, 2)
    model.set_attention_backend("flex")
    try:
        flex = forced(model, w)
        cache = observe(model, observe(model, start(model, w), w, 0), w, 1)
        again = predict(model, cache, w, 2)
    finally:
        model.set_attention_backend("native")  # diffusers keeps the last choice for all networks
    torch.testing.assert_close(flex.video, dense.video, atol=1e-5, rtol=0)
    torch.testing.assert_close(flex.actions, dense.actions, atol=1e-5, rtol=0)
    torch.testing.assert_close(again.actions, read.actions, atol=1e-5, rtol=0)
