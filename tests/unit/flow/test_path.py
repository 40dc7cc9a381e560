"""The direction of time and the conversions, against their closed forms."""

import pytest
import torch

from wam_video.flow import path
from wam_video.tensors import PredictionType


def test_t_1_is_noise_and_t_0_is_data() -> None:
    x, noise = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(path.interpolate(x, noise, torch.zeros(2, 1)), x)
    assert torch.equal(path.interpolate(x, noise, torch.ones(2, 1)), noise)


def test_velocity_is_the_derivative_of_the_path() -> None:
    x, noise = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    derivative = torch.autograd.functional.jacobian(lambda s: path.interpolate(x, noise, s), t)
    torch.testing.assert_close(derivative, path.velocity(x, noise))


@pytest.mark.parametrize("t", [0.01, 0.4, 1.0])
@pytest.mark.parametrize("kind", ["velocity", "sample"])
def test_predictions_convert_to_velocity_and_sample_of_the_truth(t: float, kind: PredictionType) -> None:
    x, noise, time = torch.randn(4, dtype=torch.float64), torch.randn(4, dtype=torch.float64), torch.tensor(t)
    x_t = path.interpolate(x, noise, time)
    truth = {"velocity": path.velocity(x, noise), "sample": x}[kind]
    torch.testing.assert_close(path.to_velocity(truth, x_t, time, kind), path.velocity(x, noise), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(path.to_sample(truth, x_t, time, kind), x, atol=1e-6, rtol=1e-6)


def test_shift_keeps_the_ends_and_matches_esser_eq_23() -> None:
    t = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(path.shift_time(t, 3.0), torch.tensor([0.0, 0.75, 1.0]))
    assert torch.equal(path.shift_time(t, 1.0), t)


def test_noise_of_a_row_does_not_depend_on_its_neighbours() -> None:
    def draw(seeds: list[int]) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        return path.standard_noise((len(seeds), 3, 4), generators, "cpu")

    assert torch.equal(draw([7, 8])[1], draw([3, 1, 8])[2])
