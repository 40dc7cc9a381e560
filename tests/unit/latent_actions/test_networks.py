import pytest
import torch

from wam_video.errors import ConfigError
from wam_video.latent_actions.networks import METHODS, Codebook, LatentActionModel, LatentModelConfig


def config(method: str) -> LatentModelConfig:
    return LatentModelConfig(method=method, dim=8, side=16, width=8, num_tokens=2, codebook=4)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_seen_by_the_decoder_can_not_leak_into_it(method: str, generator: torch.Generator) -> None:
    model = LatentActionModel(config(method)).eval()
    torch.nn.init.normal_(model.decoder.last.weight)
    x = torch.randn(3, model.config.channels, 16, 16, generator=generator)
    z = model.label(x)
    assert z.shape == (3, 8)
    later = x.clone()
    later[:, -3:] = torch.randn(3, min(3, x.shape[1]), 16, 16, generator=generator)
    torch.testing.assert_close(model.decode(x, z), model.decode(later, z), rtol=0, atol=0)
    assert not torch.allclose(model.label(later), z) or method == "nsvq"
    assert not torch.allclose(model.decode(x, z + 1), model.decode(x, z))


def test_noise_takes_the_place_of_codes_at_their_distance(generator: torch.Generator) -> None:
    book = Codebook(config("nsvq"))
    z = torch.randn(5, 8, generator=generator.manual_seed(7), requires_grad=True)
    codes = book.nearest(z)
    q = book.noisy(z, codes, generator)
    far = (q - z).reshape(5, 2, 4).norm(dim=-1)
    torch.testing.assert_close(far, (z - book.vectors(codes)).reshape(5, 2, 4).norm(dim=-1))
    q.square().sum().backward()
    assert book.codes.grad is not None
    assert bool((book.codes.grad.abs().sum(1) > 0)[codes.unique()].all()), "codes learn without a loss of their own"


def test_codes_that_nobody_uses_are_put_beside_those_in_use(generator: torch.Generator) -> None:
    book = Codebook(config("nsvq"))
    before = book.codes.detach().clone()
    assert book.revive(torch.tensor([500, 0, 499, 1]), generator) == 2
    assert torch.equal(book.codes[[0, 2]], before[[0, 2]])
    assert torch.cdist(book.codes[[1, 3]], before[[0, 2]]).min(dim=1).values.max() < 1
    assert book.revive(torch.tensor([5, 5, 5, 5]), generator) == 0


@pytest.mark.parametrize(
    "wrong", [{"method": "flw"}, {"side": 20}, {"width": 12}, {"method": "nsvq", "dim": 7}, {"interval_s": 0.0}]
)
def test_what_can_not_be_is_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="allowed"):
        LatentModelConfig(**wrong)
