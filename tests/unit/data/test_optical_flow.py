import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from wam_video.data.optical_flow import endpoint_error, optical_flow

pytest.importorskip("cv2")


def pan(step, frames=3, size=48):
    """A texture that moves `step` pixels to the right a frame."""
    field = gaussian_filter(np.random.default_rng(0).random((size, size + 40)), 2)
    field = ((field - field.min()) / np.ptp(field) * 255).astype(np.uint8)
    shots = [field[:, 20 - step * i : 20 - step * i + size] for i in range(frames)]
    return np.stack(shots)[..., None].repeat(3, axis=-1)


def test_a_known_shift_is_found() -> None:
    flow = optical_flow(pan(3))
    assert flow.shape == (2, 48, 48, 2)
    np.testing.assert_allclose(np.median(flow, axis=(1, 2)), [[3, 0], [3, 0]], atol=0.1)


def test_the_error_is_the_missing_motion() -> None:
    flow = optical_flow(pan(3))
    assert endpoint_error(pan(3), flow).max() == 0
    still = pan(0)
    np.testing.assert_allclose(endpoint_error(still, flow).mean(), 3, atol=0.2)
    assert endpoint_error(pan(2), flow).mean() < endpoint_error(still, flow).mean()


def test_one_frame_has_no_flow() -> None:
    assert optical_flow(pan(1, frames=1)).shape == (0, 48, 48, 2)
