"""The studies, one file each; the table below is all that `evaluate` knows of them."""

from wam_video.evaluation.studies.consistency import Consistency
from wam_video.evaluation.studies.drift import Drift
from wam_video.evaluation.studies.execution import Execution
from wam_video.evaluation.studies.fidelity import Fidelity
from wam_video.evaluation.studies.following import Following
from wam_video.evaluation.studies.latents import Latents
from wam_video.evaluation.studies.paths import Paths
from wam_video.evaluation.studies.physics import PhysicsStudy
from wam_video.evaluation.studies.smoothness import Smoothness
from wam_video.evaluation.study import Study

STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        Fidelity(),
        Following(),
        Consistency(),
        Execution(),
        Smoothness(),
        Drift(),
        PhysicsStudy(),
        Latents(),
        Paths(),
    )
}
"""Name -> study, in the order of the page."""
