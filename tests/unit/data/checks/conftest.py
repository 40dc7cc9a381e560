"""Recordings that are decoded once for all tests of the checks."""

from pathlib import Path

import pytest

from tests.unit.data.checks.faults import Episodes, made_up, recorded


@pytest.fixture(scope="session")
def blocks() -> Episodes:
    """Twelve made up episodes without faults."""
    return made_up()


@pytest.fixture(scope="session")
def bridge(real_data: Path) -> Episodes:
    """25 real episodes of ten steps, with state and four cameras, one of them padding."""
    return recorded(real_data / "bridge_rlds")


@pytest.fixture(scope="session")
def bridge_long(real_data: Path) -> Episodes:
    """Ten whole real episodes without state."""
    return recorded(real_data / "bridge_lerobot_v3")
