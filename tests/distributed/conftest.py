"""What the tests of several processes share."""

from collections.abc import Iterator

import pytest

from tests.distributed.forked import Runs


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """The process that forks the processes of runs; it takes long to start, so all files of tests share one."""
    made = Runs(tmp_path_factory.mktemp("forks"))
    yield made
    made.close()
