"""What the commands' tests share."""

from collections.abc import Callable, Iterator

import pytest

from tests.integration.terminal import strangers


@pytest.fixture
def foreign_words(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[], list[str]]]:
    """Turn the libraries' bars and warnings on, as they are by default; return what tells the lines that are not ours."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.enable_progress_bar()
        library.utils.logging.set_verbosity_warning()
    capfd.readouterr()
    yield lambda: strangers(capfd.readouterr().err)
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
