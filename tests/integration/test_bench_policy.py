"""`wam-video bench policy`: the parts make up the whole, ratios are to the first way, and the network is called as often as said."""

import json
from pathlib import Path
from typing import Any

import pytest

from wam_video.cli.bench import build_parser
from wam_video.cli.bench_policy import bench_policy, parse_way, random_pipeline
from wam_video.errors import ConfigError
from wam_video.evaluation.policy_bench import PARTS, PolicyBenchConfig, measure
from wam_video.testing import tiny_pipeline

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
    assert (slow["calls"], fast["calls"], reused["calls"], reused["steps_of_path"]) == (4, 1, 5, 8)
    assert slow["flops"] > 2 * fast["flops"] and 0 < slow["share_of_roofline"] < 1
    assert shown["parts_ms"]["decode"] > 0 and slow["parts_ms"]["decode"] == 0
    assert json.loads((tmp_path / "page" / "policy.json").read_text()) == found
    assert (tmp_path / "page" / "report.html").read_text().count("<svg") == 5


def test_the_calls_are_put_back() -> None:
    pipe = tiny_pipeline()
    config = PolicyBenchConfig(variants=(parse_way("steps=1"),), decisions=1, warmup=0, embodiment="arm")
    (timed,) = measure(pipe, config)["steps=1"]
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
    assert measure(pipe, config)["steps=2"][0].calls == 2


@pytest.mark.parametrize(
    ("way", "words"), [("step=1", "Did you mean 'steps'"), ("steps=one", "holds no value for steps")]
)
def test_an_unknown_way_is_told(way: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_way(way)
