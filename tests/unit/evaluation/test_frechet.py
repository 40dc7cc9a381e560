import pytest
import torch

from wam_video.evaluation.frechet import I3D, Gaussian, frechet_distance, load_i3d


def draw(n, d, seed=0, scale=1.0, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale + shift


def test_the_distance_of_known_gaussians_is_the_closed_form() -> None:
    a, b = torch.tensor([1.0, 4.0]).double(), torch.tensor([9.0, 1.0]).double()
    first = Gaussian(count=2, first=torch.zeros(2).double(), second=torch.diag(a))
    mean = torch.tensor([3.0, -4.0]).double()
    second = Gaussian(count=2, first=2 * mean, second=torch.diag(b) + 2 * torch.outer(mean, mean))
    expected = 25 + sum((x.sqrt() - y.sqrt()) ** 2 for x, y in zip(a, b, strict=True))
    assert frechet_distance(first, second) == pytest.approx(float(expected))


def test_a_set_is_at_no_distance_from_itself_and_the_distance_is_symmetric() -> None:
    x, y = Gaussian.of(draw(200, 6)), Gaussian.of(draw(200, 6, seed=1, scale=2, shift=0.5))
    assert frechet_distance(x, x) < 1e-6
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-9)


def test_more_noise_is_further_away() -> None:
    x = draw(300, 5)
    found = [frechet_distance(Gaussian.of(x + draw(300, 5, seed=2, scale=s)), Gaussian.of(x)) for s in (0.1, 0.5, 1, 2)]
    assert found == sorted(found) and found[0] < found[-1] / 10


def test_sums_of_parts_are_the_sum_of_all_in_any_order() -> None:
    x = draw(60, 4)
    parts = Gaussian.of(x[40:]) + Gaussian.of(x[:25]) + Gaussian.of(x[25:40])
    torch.testing.assert_close(parts.covariance, torch.cov(x.T))
    torch.testing.assert_close(parts.mean, x.mean(dim=0))


def test_i3d_has_the_shapes_of_the_published_port(tmp_path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in I3D().state_dict().items()}
    assert shapes["Conv3d_1a_7x7.conv3d.weight"] == (64, 3, 7, 7, 7)
    assert shapes["Mixed_5c.b1b.bn.running_var"] == (384,)
    assert shapes["logits.conv3d.bias"] == (400,)
    conv = [s for k, s in shapes.items() if k.endswith("conv3d.weight")]
    assert len(conv) == 58  # 3 + 9 blocks of 6 + the logits
    save_file(I3D().state_dict(), tmp_path / "i3d.safetensors")
    features = load_i3d(tmp_path / "i3d.safetensors")(torch.rand(10, 3, 16, 16))
    assert features.shape == (400,) and bool(torch.isfinite(features).all())
