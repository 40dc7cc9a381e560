"""`wam-video bench policy`: the parts make up the whole, ratios are to the first way, and the network is called as often as said."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wam_video.cli.bench import build_parser
from wam_video.cli.bench_policy import bench_policy, parse_way, random_pipeline
from wam_video.errors import ConfigError
from wam_video.evaluation.policy_bench import PARTS, PolicyBenchConfig, _Robot, measure, run_as, summary
from wam_video.testing import fake_shards, tiny_pipeline

CAUSAL = {"attention": {"pattern": "causal", "chunk_frames": 2}}


def figures(*arguments: object) -> dict[str, Any]:
    return bench_policy(build_parser().parse_args(["policy", *map(str, arguments)]))


@pytest.mark.parametrize("model", [{}, CAUSAL])
def test_a_checkpoint_is_measured_and_drawn(model: dict[str, Any], tmp_path: Path) -> None:
    tiny_pipeline(model=model).save_pretrained(tmp_path / "model")
    ways = (
        "--way",
        "steps=4",
        "--way",
        "steps=1,path=absent",
        "--way",
        "steps=8,reuse=1e9",
        "--way",
        "path=joint,decode=1",
    )
    found = figures(
        "--model", tmp_path / "model", "--embodiment", "arm", *ways, "--decisions", 3, "--page", tmp_path / "page"
    )
    slow, fast, reused, shown = found["variants"]
    for way in found["variants"]:
        assert set(way["parts_ms"]) == set(PARTS) and way["parts_ms"]["denoise"] > 0
        assert sum(way["parts_ms"].values()) <= 1.5 * way["latency_ms"]["p95"]
        assert (way["parts_ms"]["prefill"] > 0) is bool(model)
        assert way["latency_ms"]["p50"] <= way["latency_ms"]["p95"] <= way["latency_ms"]["p99"]
    assert slow["ratio"]["median"] == 1.0 and fast["ratio"]["median"] < 1.0
    assert slow["cpu_ratio"]["median"] == 1.0 and 0 < fast["cpu_ms"] < slow["cpu_ms"]
    assert (slow["calls"], fast["calls"], reused["calls"], reused["steps_of_path"]) == (4, 1, 5, 8)
    assert slow["flops"] > 2 * fast["flops"] and 0 < slow["share_of_roofline"] < 1
    assert shown["parts_ms"]["decode"] > 0 and slow["parts_ms"]["decode"] == 0
    assert json.loads((tmp_path / "page" / "policy.json").read_text()) == found
    assert (tmp_path / "page" / "report.html").read_text().count("<svg") == 5


def test_the_calls_are_put_back() -> None:
    pipe = tiny_pipeline()
    config = PolicyBenchConfig(variants=(parse_way("steps=1"),), decisions=1, warmup=0, embodiment="arm")
    (timed,) = measure(run_as(pipe, config.variants), config)["steps=1"]
    assert timed.total >= sum(timed.parts.values()) - 1e-9
    assert "forward" not in pipe.transformer.__dict__ and "encode" not in pipe.vae.__dict__


def test_a_random_network_of_a_configuration_decides() -> None:
    sizes = [
        "data.window.height=32",
        "data.window.width=32",
        "data.window.num_context_frames=2",
        "data.window.action_horizon=4",
    ]
    pipe = random_pipeline(["configs/model/tiny.yaml", "data.datasets={}", *sizes])
    config = PolicyBenchConfig(variants=(parse_way("steps=2"),), decisions=1, warmup=0)
    assert measure(run_as(pipe, config.variants), config)["steps=2"][0].calls == 2


@pytest.mark.parametrize(
    ("way", "words"), [("step=1", "Did you mean 'steps'"), ("steps=one", "holds no value for steps")]
)
def test_an_unknown_way_is_told(way: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_way(way)


def test_guidance_that_is_the_checkpoints_own_is_counted(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    pipe.scheduler.register_to_config(guidance_scale=2.0)
    pipe.save_pretrained(tmp_path / "model")
    common = ("--model", tmp_path / "model", "--embodiment", "arm", "--decisions", 1, "--warmup", 0)
    own, none = figures(*common, "--way", "steps=1", "--way", "steps=1,guidance=1")["variants"]
    assert own["flops"] == 2 * none["flops"] and (own["fewer_flops"], none["fewer_flops"]) == (1.0, 2.0)


@pytest.mark.parametrize("path", ["joint", "absent"])
def test_a_causal_network_without_its_cache_computes_all_that_is_remembered(path: str) -> None:
    """The counts are torch's, both with a full cache and without one."""
    pipe = tiny_pipeline(model={"attention": {"pattern": "causal", "chunk_frames": 1, "window": 3}})
    ways = tuple(parse_way(f"steps=2,path={path}{more}") for more in (",recompute=1", ""))
    config = PolicyBenchConfig(variants=ways, decisions=1, warmup=0, embodiment="arm")
    found, torchs = {}, {}
    for way in ways:
        robot = _Robot(pipe, config, way)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            found[way.name] = [robot.decide(0)]
        torchs[way.name] = counter.get_total_flops()
    naive, cached = summary(run_as(pipe, ways), config, found, "cpu")["variants"]
    assert naive["calls"] == cached["calls"] == 2 and naive["flops"] > 1.5 * cached["flops"]
    assert naive["flops"] == torchs[naive["name"]]
    assert 0.94 * torchs[cached["name"]] < cached["flops"] < torchs[cached["name"]], (
        "a cache keeps room for its context, masked"
    )
    with pytest.raises(ConfigError, match="recompute=1 is for causal networks"):
        _Robot(tiny_pipeline(), config, ways[0])


def test_small_weights_are_a_way_and_their_error_is_told(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    shards = fake_shards(tmp_path / "shards", [pipe.processor.spec("arm")], episodes=6)
    common = ("--model", tmp_path / "model", "--embodiment", "arm", "--decisions", 1, "--warmup", 0, "--windows", 12)
    ways = ("--way", "steps=2,quantize=none", "--way", "steps=2")
    plain, small = figures(*common, *ways, "--quantize", "int8", "--data", shards)["variants"]
    assert (plain["quantize"], small["quantize"]) == ("none", "int8")
    assert 0 < small["error"]["apart"]["value"] < 0.01 and small["flops"] == plain["flops"]
    assert small["weights_mb"] < 0.8 * plain["weights_mb"]


def test_the_error_of_each_way_stands_beside_the_first_ways(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    shards = fake_shards(tmp_path / "shards", [pipe.processor.spec("arm"), pipe.processor.spec("hand")], episodes=6)
    common = ("--model", tmp_path / "model", "--embodiment", "arm", "--decisions", 1, "--warmup", 0, "--windows", 12)
    ways = ("--way", "steps=4", "--way", "steps=1", "--way", "steps=4,reuse=0")
    found = figures(*common, *ways, "--data", shards, "--page", tmp_path / "page")
    slow, fast, same = (way["error"] for way in found["variants"])
    assert found["data"]["episodes"] >= 2 and found["data"]["embodiment"] == "arm"
    for one in (slow, fast):
        assert one["nrmse"]["low"] <= one["nrmse"]["value"] <= one["nrmse"]["high"]
    assert slow["apart"]["value"] == slow["more_than_first"]["value"] == same["apart"]["value"] == 0
    assert fast["apart"]["low"] > 0
    assert fast["more_than_first"]["value"] == pytest.approx(fast["nrmse"]["value"] - slow["nrmse"]["value"], abs=2e-5)
    assert "What the actions lose" in (tmp_path / "page" / "report.html").read_text()
    hand = fake_shards(tmp_path / "hand", [pipe.processor.spec("hand")], episodes=2)
    with pytest.raises(ConfigError, match="--embodiment is 'arm'; allowed: hand"):
        figures(*common, "--data", hand)
    with pytest.raises(ConfigError, match="mean nothing"):
        figures("--config", "configs/model/tiny.yaml", "--data", shards)
