import pickle

import pytest
import torch
from safetensors.torch import save_file

from wam_video.errors import CheckpointError
from wam_video.evaluation.perceptual import AlexNetFeatures, load_lpips, perceptual_distance


def pictures(seed=0, n=4):
    return torch.rand(n, 3, 40, 40, generator=torch.Generator().manual_seed(seed))


def network():
    kernel = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(3))
    return lambda x: [torch.nn.functional.conv2d(x, kernel), torch.nn.functional.conv2d(x, kernel.flip(-1), stride=2)]


HEADS = [torch.ones(5), torch.arange(5).float()]


def distance(a, b):
    return perceptual_distance(network(), HEADS, a, b)


def test_equal_pictures_are_at_no_distance_and_order_does_not_matter() -> None:
    a, b = pictures(), pictures(1)
    assert float(distance(a, a).abs().max()) == 0
    torch.testing.assert_close(distance(a, b), distance(b, a))
    torch.testing.assert_close(distance(a, b).flip(0), distance(a.flip(0), b.flip(0)))


def test_more_noise_is_further_away() -> None:
    a, noise = pictures(), pictures(2) - 0.5
    found = [float(distance(a, a + s * noise).mean()) for s in (0.05, 0.2, 0.8)]
    assert found == sorted(found) and found[0] > 0


def test_the_distance_is_the_formula() -> None:
    a, b = torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
    a[0, 0], b[0, 1] = 3.0, 5.0  # unit vectors at a right angle: squared difference 1 in each channel
    maps = iter([[a], [b]])
    found = perceptual_distance(
        lambda x: next(maps), [torch.tensor([0.5, 2.0])], torch.zeros(1, 3, 1, 1), torch.zeros(1, 3, 1, 1)
    )
    assert float(found) == pytest.approx(2.5)


def lpips_file(path):
    torch.manual_seed(0)
    heads = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate((64, 192, 384, 256, 256))}
    save_file(AlexNetFeatures().state_dict() | heads, path)
    return path


def test_weights_come_from_safetensors(tmp_path) -> None:
    lpips = load_lpips(lpips_file(tmp_path / "w.safetensors"))
    a, b = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    assert float(lpips(a, a).abs().max()) == 0 and bool((lpips(a, b) > 0).all())


def test_alexnet_has_the_names_and_sizes_of_torchvision() -> None:
    shapes = {k: tuple(v.shape) for k, v in AlexNetFeatures().state_dict().items()}
    assert shapes["features.0.weight"] == (64, 3, 11, 11) and shapes["features.10.bias"] == (256,)
    assert [m.shape[-1] for m in AlexNetFeatures()(torch.zeros(1, 3, 224, 224))] == [55, 27, 13, 13, 13]


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def test_a_pickle_is_refused_and_not_run(tmp_path) -> None:
    (tmp_path / "w.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="safetensors"):
        load_lpips(tmp_path / "w.pt")
    script = torch.jit.script(torch.nn.ReLU())
    script.save(tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match="safetensors"):
        load_lpips(tmp_path / "net.pt")


@pytest.mark.parametrize("wrong", ["missing", "other"])
def test_a_file_that_is_missing_or_of_another_network_is_named(tmp_path, wrong: str) -> None:
    path = tmp_path / "w.safetensors"
    if wrong == "other":
        save_file({"features.0.weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="lpips="):
        load_lpips(path)
