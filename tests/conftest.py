"""What every test shares: one thread, no network, CPU by default, and the real recordings where they are at hand."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

# Before torch and the hub client are imported: several workers share few cores, and no test may reach for the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

import torch

ROOT = Path(__file__).resolve().parents[1]
_OPERATORS: list[torch.library.Library] = []


def _declare_torchvision_operators() -> None:
    """Let torchvision's CUDA wheel be imported beside CPU torch (timm and peft import it when it is installed).

    The wheel can't load its compiled operators there, and then fails because it registers shapes for operators that
    nobody has declared. A declaration is enough; calling them still fails, as it should.
    """
    if torch.version.cuda is not None or find_spec("torchvision") is None:
        return
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _OPERATORS.append(library)  # the declaration lasts as long as this object


torch.set_num_threads(1)
_declare_torchvision_operators()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs GPUs that are not there."""
    devices = torch.cuda.device_count()
    for item in items:
        for marker, needed in (("gpu", 1), ("multi_gpu", 2)):
            if item.get_closest_marker(marker) and devices < needed:
                item.add_marker(pytest.mark.skip(reason=f"needs {needed} CUDA device(s), found {devices}"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real recordings: WAM_VIDEO_REAL_DATA, else ../shared/data beside the repository; skips without."""
    folder = Path(os.environ.get("WAM_VIDEO_REAL_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real recordings at {folder}; set WAM_VIDEO_REAL_DATA")
    return folder


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded source of randomness of the test's own."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def _same_global_state() -> None:
    """Code under test takes its generator as an argument; this only keeps third-party initialisers reproducible."""
    torch.manual_seed(0)
