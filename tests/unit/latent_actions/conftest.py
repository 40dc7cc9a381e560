"""Fixtures: one folder of moving squares for all tests of latent actions."""

from pathlib import Path

import pytest

from tests.unit.latent_actions.square import write


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of ten recordings of a square that moves by whole pixels."""
    return write(tmp_path_factory.mktemp("latent") / "squares")
