import torch
from torch import nn

from tests.unit.training.fakes import MODEL
from wam_video.models.transformer import WAMTransformer
from wam_video.training.config import OptimConfig
from wam_video.training.muon import MuonAdamW, is_block_matrix
from wam_video.training.optim import build_optimizer, decays, set_learning_rate

BODIES = [{"name": "a", "action_dim": 2, "state_dim": 2}]


def _network() -> WAMTransformer:
    torch.manual_seed(0)
    return WAMTransformer(**MODEL | {"embodiments": BODIES, "in_channels": 12})


def _fill_gradients(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_a_step_is_that_of_the_two_optimizers_apart() -> None:
    ours, theirs = _network(), _network()
    config = OptimConfig(name="muon", lr=1e-2, muon_lr_scale=2.0, weight_decay=0.1)
    optimizer = build_optimizer(config, ours)
    matrices = [p for name, p in theirs.named_parameters() if is_block_matrix(name, p)]
    ids = {id(p) for p in matrices}
    rest = [p for p in theirs.parameters() if id(p) not in ids]
    muon = torch.optim.Muon(matrices, lr=2e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=1e-2, betas=config.betas, weight_decay=0.0, fused=True)
    for seed in range(3):
        _fill_gradients(ours, seed)
        _fill_gradients(theirs, seed)
        set_learning_rate(optimizer, config.lr)
        optimizer.step()
        muon.step()
        adamw.step()
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        if is_block_matrix(name, a) or not decays(name, a):  # the other optimizer here decays nothing
            assert torch.equal(a, b), name


def test_only_matrices_of_blocks_are_orthogonalised() -> None:
    names = {name for name, p in _network().named_parameters() if is_block_matrix(name, p)}
    assert "blocks.0.attn1.to_q.weight" in names
    assert all(name.startswith("blocks.") and name.endswith("weight") for name in names)


def test_its_state_is_reached_by_parameter_and_goes_on_to_the_bit() -> None:
    def run(steps: int, network: WAMTransformer, optimizer: torch.optim.Optimizer, first: int) -> None:
        for seed in range(first, first + steps):
            _fill_gradients(network, seed)
            set_learning_rate(optimizer, 1e-2)
            optimizer.step()

    config = OptimConfig(name="muon")
    whole, halted = _network(), _network()
    run(4, whole, build_optimizer(config, whole), 0)
    before = build_optimizer(config, halted)
    run(2, halted, before, 0)
    again = build_optimizer(config, halted)
    assert isinstance(again, MuonAdamW)
    for parameter, entries in before.state.items():
        again.state[parameter].update({key: value.clone() for key, value in entries.items()})
    run(2, halted, again, 2)
    for a, b in zip(whole.parameters(), halted.parameters(), strict=True):
        assert torch.equal(a, b)
