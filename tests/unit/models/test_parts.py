import pytest

from wam_video.models.parts import PARTS, part_of, plain_name


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("blocks.3.attn1.to_q.weight", "trunk"),
        ("transformer.proj_out.weight", "trunk"),
        ("blocks.3.attn1.side_gate", "embodiment"),
        ("transformer.action_embedder.weight", "embodiment"),
        ("action_proj_out.layer2.bias", "embodiment"),
        ("no_state", "embodiment"),
        ("registers", "embodiment"),
        ("condition_embedder.time_proj.weight", "conditioning"),
        ("transformer.expert.blocks.0.attn1.to_q.weight", "expert"),
        ("expert.condition_embedder.time_proj.weight", "expert"),
        ("expert.blocks.0.attn1.to_q.lora_A.default.weight", "lora"),
        ("transformer.blocks.0.attn1.to_q.base_layer.weight", "trunk"),
        ("text_encoder.encoder.block.0.layer.0.SelfAttention.q.weight", "text"),
        ("head.layers.0.weight", "teacher"),
    ],
)
def test_a_parameter_belongs_to_the_part_that_its_name_says(name: str, part: str) -> None:
    assert part_of(name) == part
    assert part in PARTS


def test_a_plain_name_is_that_of_the_checkpoint() -> None:
    assert plain_name("transformer.blocks.0.ffn.net.2.base_layer.bias") == "blocks.0.ffn.net.2.bias"
    assert plain_name("proj_out.weight") == "proj_out.weight"
