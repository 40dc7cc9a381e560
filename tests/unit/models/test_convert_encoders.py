"""Names of the original Wan code against what diffusers' and transformers' own classes have."""

from wam_video.models.convert_encoders import clip_names, empty, umt5_names, vae_names


def leaves(name: str) -> list[str]:
    return [f"{name}.weight", f"{name}.bias"]


def block(name: str, *, shortcut: bool = False) -> list[str]:
    found = [f"{name}.residual.0.gamma", f"{name}.residual.3.gamma"]
    return [
        *found,
        *leaves(f"{name}.residual.2"),
        *leaves(f"{name}.residual.6"),
        *(leaves(f"{name}.shortcut") if shortcut else []),
    ]


def half(name: str, way: str, blocks: int, wider: set[int], timed: set[int]) -> list[str]:
    """One half of the VAE of Wan2.2 as its code names it: lists of lists."""
    found = [*leaves(f"{name}.conv1"), f"{name}.head.0.gamma", *leaves(f"{name}.head.2"), f"{name}.middle.1.norm.gamma"]
    found += leaves(f"{name}.middle.1.to_qkv") + leaves(f"{name}.middle.1.proj")
    found += block(f"{name}.middle.0") + block(f"{name}.middle.2")
    for level in range(4):
        at = f"{name}.{way}samples.{level}.{way}samples"
        for index in range(blocks):
            found += block(f"{at}.{index}", shortcut=index == 0 and level in wider)
        if level < 3:
            found += leaves(f"{at}.{blocks}.resample.1")
            found += leaves(f"{at}.{blocks}.time_conv") if level in timed else []
    return found


def test_the_vae_of_wan_2_2_has_the_tensors_of_diffusers() -> None:
    theirs = [
        *leaves("conv1"),
        *leaves("conv2"),
        *half("encoder", "down", 2, {1, 2}, {1, 2}),
        *half("decoder", "up", 3, {2, 3}, {0, 1}),
    ]
    shapes = {"conv2.weight": (48, 48, 1, 1, 1), "encoder.conv1.weight": (8, 12, 3, 3, 3)}
    module = empty("vae", shapes | {"decoder.middle.0.residual.0.gamma": (64, 1, 1, 1)})
    assert sorted(ours for name in theirs for ours in vae_names(name)) == sorted(module.state_dict())


def test_what_is_none_of_theirs_has_no_name() -> None:
    for names in (umt5_names, clip_names, vae_names):
        assert names("something.else") == [] and names("decoder") == []
