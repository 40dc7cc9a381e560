"""A network that is compiled says the same; one with small weights nearly; what can't be had is told in one line."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from wam_video.cli.main import main
from wam_video.errors import ConfigError, MissingDependencyError
from wam_video.evaluation.policy_bench import PolicyBenchConfig, Variant, measure
from wam_video.inference import speed
from wam_video.inference.pipeline import WAMPipeline
from wam_video.inference.server.dialects import Answer, Asked
from wam_video.inference.server.policy import Policy, PolicyConfig
from wam_video.inference.server.warm_up import warm_up
from wam_video.inference.speed import Replayed, SpeedConfig, compiled, faster_copy, quantize, speed_up, weight_bytes
from wam_video.models.transformer import WAMTransformer
from wam_video.testing import tiny_pipeline

CAUSAL: dict[str, Any] = {"attention": {"pattern": "causal", "chunk_frames": 2, "window": 2}}
TRACED = SpeedConfig(compile="default", backend="eager")
"""No machine code, so that it is quick."""


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def live(pipe: WAMPipeline, chunks: int = 5) -> tuple[np.ndarray, list[int]]:
    """Return what a session is told, and the number of graphs after each decision."""
    session, rng, heard, made = pipe.stream(embodiment="arm", prompt="push"), np.random.default_rng(0), [], []
    for _ in range(chunks):
        session.observe(rng.integers(0, 256, (1, 1, 2, 16, 16, 3), dtype=np.uint8), np.ones((1, 2)))
        heard.append(session.act(generator=0, num_inference_steps=3, solver="ab2").actions)
        made.append(graphs())
    return np.stack(heard), made


def fresh() -> None:
    torch.compiler.reset()
    counters.clear()


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.parametrize("what", ["blocks", "whole"])
def test_what_is_compiled_says_the_same_and_a_full_window_needs_no_more_graphs(what: str) -> None:
    fresh()
    pipe = tiny_pipeline(model=CAUSAL)
    plain = live(pipe)[0]
    if what == "blocks":
        assert speed_up(pipe, TRACED)["compile"] == "default"
    else:  # as for CUDA graphs, which are not recorded here
        pipe.transformer.forward = Replayed(
            pipe.transformer.forward, compiled(pipe.transformer.forward, backend="eager")
        )
    heard, made = live(pipe)
    np.testing.assert_allclose(heard, plain, atol=1e-5)
    assert made[0] >= 1 and made[2:] == [made[2]] * 3, "one for the context, one for any filling of the window"
    assert not counters["graph_break"]
    with pytest.raises(ConfigError, match="sped up already"):
        speed_up(pipe, TRACED)


@pytest.mark.compile
@pytest.mark.slow
@pytest.mark.parametrize("rule", [{}, CAUSAL])
def test_robots_of_a_warm_server_do_not_wait_for_the_compiler(rule: dict[str, Any]) -> None:
    fresh()
    pipe = tiny_pipeline(model=rule)
    speed_up(pipe, TRACED)
    served = Policy(pipe, PolicyConfig(embodiment="arm", max_sessions=4, num_inference_steps=1))
    warm_up(served, 3, every_shape=True)
    warm, rng = graphs(), np.random.default_rng(0)
    assert warm > 0
    for turn in ([0], [0, 1], [1, 2], [2, 0, 1], [2], [0, 1, 2], [3]):
        frames = rng.integers(0, 256, (len(turn), 2, 16, 16, 3), dtype=np.uint8)
        asked = [(row, Asked(frames=(f,), state=np.ones(2, np.float32))) for row, f in zip(turn, frames, strict=True)]
        assert all(isinstance(answer, Answer) for answer in served.decide(asked))
    assert graphs() == warm


def test_a_replayed_network_gives_away_nothing_that_its_next_call_writes_over() -> None:
    pipe, memory = tiny_pipeline(model=CAUSAL), []
    plain, forward = live(pipe)[0], pipe.transformer.forward

    def as_a_graph_would(**inputs: Any) -> Any:
        for old in memory:  # a CUDA graph writes its outputs where the last ones were
            old.fill_(torch.nan)
        made = forward(**inputs)
        memory[:] = [part for part in (made.video, made.actions) if part is not None]
        return made

    pipe.transformer.forward = Replayed(forward, as_a_graph_would)
    np.testing.assert_array_equal(live(pipe)[0], plain)
    assert memory
    config = PolicyBenchConfig(variants=(Variant(name="its own"),), decisions=1, embodiment="arm")
    measure({"its own": pipe}, config)
    assert isinstance(pipe.transformer.forward, Replayed), "what was watched is put back"
    pipe.transformer.forward = as_a_graph_would  # the control
    with pytest.raises((AssertionError, ConfigError)):
        np.testing.assert_array_equal(live(pipe)[0], plain)


def test_gradients_take_the_network_as_it_is() -> None:
    pipe = tiny_pipeline()

    def never(**inputs: Any) -> Any:
        raise AssertionError("compiled")

    with torch.enable_grad(), pytest.raises(TypeError, match="latents"):
        Replayed(pipe.transformer.forward, never)()


def test_int8_weights_are_close_and_a_quarter_of_the_size() -> None:
    pytest.importorskip("torchao")
    pipe = tiny_pipeline(model=CAUSAL)
    small = faster_copy(pipe, SpeedConfig(quantization="int8"))
    plain, heard = live(pipe)[0], live(small)[0]
    assert 0 < np.abs(heard - plain).max() < 0.01 * plain.std()
    linear = [m for n, m in pipe.transformer.named_modules() if n.startswith("blocks.") and hasattr(m, "in_features")]
    saved = weight_bytes(pipe.transformer) - weight_bytes(small.transformer)
    scales = sum(8 * layer.out_features for layer in linear)
    assert 0 < sum(3 * layer.weight.numel() for layer in linear) - saved < scales
    again = live(pipe)[0]
    np.testing.assert_array_equal(again, plain, err_msg="the copy has weights of its own")
    heads = [name for name, value in small.transformer.named_parameters() if hasattr(value, "__tensor_flatten__")]
    assert len(heads) == len(linear) and all(name.startswith("blocks.") for name in heads)


def test_only_layers_whose_widths_the_gpu_takes_get_8_bit_floats() -> None:
    pytest.importorskip("torchao")
    with pytest.raises(ConfigError, match="multiples of 16"):
        quantize(tiny_pipeline().transformer, "fp8")  # 24 wide


def test_8_bit_floats_are_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's product of 8-bit floats for CPUs, which torchao does not use by itself; a GPU's was not at hand."""
    pytest.importorskip("torchao")
    from torchao.quantization import quant_api

    monkeypatch.setattr(quant_api, "_check_hardware_support", lambda granularity: None)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 64, "num_layers": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = (
            WAMTransformer(**sizes, embodiments=[{"name": "arm", "action_dim": 2, "state_dim": 2}]).eval().bfloat16()
        )
    block, x = network.blocks[0], torch.randn(1, 8, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        plain = block.ffn(x)
        head = network.proj_out.weight.clone()
        assert quantize(network, "fp8") == 2 * (4 + 4 + 2)
        made = block.ffn(x)
    assert 0 < (made - plain).abs().mean() < 0.1 * plain.abs().mean()
    assert torch.equal(network.proj_out.weight, head) and type(block.ffn.net[2].weight).__name__ == "Float8Tensor"


def test_guidance_by_gradients_goes_through_int8_weights() -> None:
    pytest.importorskip("torchao")
    pipe = tiny_pipeline()
    small = faster_copy(pipe, SpeedConfig(quantization="int8"))
    frames, state = np.zeros((1, 1, 2, 16, 16, 3), np.uint8), np.ones((1, 2), np.float32)
    told = {
        "committed_actions": [[[0.5, 0.5]]],
        "planned_actions": [[[0.4, 0.4], [0.3, 0.3]]],
        "continuation": "guided",
    }
    plain, heard = (
        np.asarray(each("policy", frames, state=state, embodiment="arm", generator=0, **told).actions)
        for each in (pipe, small)
    )
    assert 0 < np.abs(heard - plain).max() < 0.05 * plain.std()


def test_a_network_that_learns_or_has_an_adapter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, small = tiny_pipeline(), SpeedConfig(quantization="int8")
    pipe.transformer.train()
    with pytest.raises(ConfigError, match=r"eval\(\)"):
        speed_up(pipe, small)
    pipe.transformer.eval().peft_config = {"default": None}
    with pytest.raises(ConfigError, match="merge=True"):
        speed_up(pipe, small)


@pytest.mark.parametrize(
    ("capability", "words"), [((8, 0), r"has 8\.0; allowed here: none, int8"), ((9, 0), "give bfloat16")]
)
def test_8_bit_floats_need_a_gpu_that_has_them(
    capability: tuple[int, int], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torchao")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    config = SpeedConfig(quantization="fp8")
    with pytest.raises(ConfigError, match=words):
        speed._check_device(config, torch.device("cuda"), "float32")
    if capability == (9, 0):
        speed._check_device(replace(config, compile="graphs"), torch.device("cuda"), "bfloat16")


def test_a_missing_torchao_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"wam-video\[speed\]"):
        speed_up(tiny_pipeline(), SpeedConfig(quantization="int8"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--compile", "graphs"), "CUDA graphs need a CUDA device; allowed here: none, default"),
        (("--compile", "max"), "compile is 'max'; allowed: default, graphs, none"),
        (("--quantize", "int4"), "quantization is 'int4'; allowed: fp8, int8, none"),
        (("--quantize", "fp8"), "compute capability 8.9 or more, and the network is on cpu"),
        (("--dtype", "float8"), "dtype is 'float8'; allowed: bfloat16, float16, float32"),
    ],
)
def test_what_can_not_be_had_is_one_line(
    options: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchao")
    tiny_pipeline().save_pretrained(tmp_path / "model")
    capsys.readouterr()
    model = ("--model", str(tmp_path / "model"), "--device", "cpu")
    commands = [
        ["serve", *model, "--port", "0"],
        ["rollout", *model, "--env", "pusht", "--output", str(tmp_path / "o")],
    ]
    if options[0] != "--dtype":
        commands.append(["bench", "policy", *model, "--embodiment", "arm"])
    for command in commands:
        assert main([*command, *options]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line]
        assert len(lines) == 1 and lines[0].startswith("error: ") and words in lines[0]
