import pytest

from tests.unit.evaluation.studies.toy_subject import WINDOW, toy_processor
from wam_video.errors import ConfigError
from wam_video.evaluation.study_run import check_reader


def test_a_reader_of_other_windows_is_refused_by_what_differs() -> None:
    model = toy_processor()
    check_reader("m", model, toy_processor())
    other = toy_processor(window=WINDOW | {"future_stride_s": 0.4, "num_future_frames": 2})
    with pytest.raises(
        ConfigError, match=r"num_future_frames 2 \(model 'm': 3\), future_stride_s 0.4 \(model 'm': 0.2\)"
    ):
        check_reader("m", model, other)
