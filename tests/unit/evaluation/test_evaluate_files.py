"""What studies can't open is refused before anything is scored."""

import pytest

from wam_video.cli.evaluate import main
from wam_video.errors import WamError
from wam_video.evaluation.evaluate import check_files
from wam_video.evaluation.opened import EvaluateConfig
from wam_video.evaluation.study import StudyOptions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"env": "pushed"}, "--env is 'pushed'; allowed"),
        ({"weights": {"lpips": "missing"}}, "lpips=missing is no file"),
        ({"inverse_model": "missing"}, "'missing' is no folder"),
    ],
)
def test_what_is_not_there_is_told_before_the_work(options: dict, message: str) -> None:
    with pytest.raises(WamError, match=message):
        check_files(EvaluateConfig(models={"m": "m"}, data="d", study_options=StudyOptions(**options)))


def test_options_of_studies_without_studies_are_refused(tmp_path) -> None:
    with pytest.raises(WamError, match="--env is for studies"):
        main(["--model", "m", "--data", "d", "--env", "pusht", "--output", str(tmp_path)])
