"""What the page says of the study, and the questions that it answers."""

from dataclasses import dataclass

from wam_video.evaluation.scores import Check
from wam_video.evaluation.studies.physics import films
from wam_video.evaluation.study import StudyWords, question

NAME = "physics"

WORDS = StudyWords(
    title="Physics: does the imagined world behave?",
    sentence=(
        "A simulator plays known actions from one start in several ways (a push, a random drive, holding still, a push and the way "
        "back); the model sees the start and the actions and imagines the rest, forward after forward on its own pictures. Things are "
        "found by colour, and what they do is held against the simulator. The simulator's own film, stored as data are (H.264), shows "
        "how well that can be measured at all; the broken models show what failing looks like. A frozen picture loses nothing and "
        "pushes nothing, so it is the measure of some questions and not of others."
    ),
    metrics={
        "piq_score": "Physics-IQ, 0 to 100: 100 is as near as a second take (longer is better)",
        "piq_spatial": "Physics-IQ, where it moves: overlap (longer is better)",
        "piq_weighted": "Physics-IQ, where and how much it moves: overlap (longer is better)",
        "piq_spatiotemporal": "Physics-IQ, where and when it moves: overlap (longer is better)",
        "piq_mse": "Physics-IQ, squared error of the pixels (shorter is better)",
        "permanence": "Permanence: share of pictures with each thing there, in one piece (longer is better)",
        "area_change": "Conservation: change of a thing's area, share (shorter is better)",
        "colour_change": "Conservation: change of a thing's colour, levels of 255 (shorter is better)",
        "place_error": "Place: distance to where the simulator has it, px (shorter is better)",
        "contact_f1": "Contact: things move when they are touched, F1 (longer is better)",
        "moved_untouched": "Contact: share of untouched moments at which a thing moves (shorter is better)",
        "penetration": "Penetration: the body inside a thing, px (shorter is better)",
        "static_drift": "Holding still: change of the pictures, levels of 255 (shorter is better)",
        "counterfactual": "What if: share of differences between two action sequences with the right sign (longer is better)",
        "left_behind": "Way back: movement of what was left behind, px (shorter is better)",
    },
    conditions={
        films.MODEL: "the model",
        films.FLOOR: "the simulator's film, stored as data are",
        films.AGAIN: "a second take of the same start",
        films.FROZEN: "broken: nothing ever moves",
        films.SHUFFLED: "broken: the model with another take's actions",
        films.MELTED: "broken: blurs more and more",
        films.GLUED: "broken: the body moves, all else stays",
    },
)

UNITS = {
    "piq_score": "",
    "colour_change": "levels",
    "place_error": "px",
    "penetration": "px",
    "static_drift": "levels",
    "left_behind": "px",
}
_OVER_TIME = (films.MODEL, films.FLOOR, films.FROZEN, films.SHUFFLED, films.MELTED)
CURVES: dict[str, tuple[str, ...]] = dict.fromkeys(("permanence", "place_error", "static_drift"), _OVER_TIME)
"""Metric -> conditions that are followed over time; a chart holds five."""
MORE_IS_BETTER = frozenset(
    {"piq_score", "piq_spatial", "piq_weighted", "piq_spatiotemporal", "permanence", "contact_f1", "counterfactual"}
)
OBJECT_METRICS = (
    "permanence", "area_change", "colour_change", "place_error", "contact_f1", "moved_untouched", "penetration", "counterfactual",
    "left_behind",
)  # fmt: skip
"""They need a simulator that says what is where."""


@dataclass(frozen=True, kw_only=True)
class _Ask:
    metric: str
    worse: str
    asks: str
    flag: str


_ASKS = (
    _Ask(metric="piq_score", worse=films.FROZEN, asks="Is it nearer to the real film than a frozen picture?",
         flag="by Physics-IQ no better than a frozen picture"),
    _Ask(metric="piq_score", worse=films.SHUFFLED, asks="Is it nearer with the true actions than with others?",
         flag="by Physics-IQ no better than with other actions"),
    _Ask(metric="piq_spatiotemporal", worse=films.FROZEN, asks="Does it move where and when the world does?",
         flag="moves where and when the world does no better than a frozen picture"),
    _Ask(metric="permanence", worse=films.MELTED, asks="Do things stay what they are, better than in a blur?",
         flag="things vanish or come apart as in a blur"),
    _Ask(metric="area_change", worse=films.MELTED, asks="Do things keep their size, better than in a blur?",
         flag="things change their size as in a blur"),
    _Ask(metric="colour_change", worse=films.MELTED, asks="Do things keep their colour, better than in a blur?",
         flag="things change their colour as in a blur"),
    _Ask(metric="place_error", worse=films.FROZEN, asks="Are things nearer to their true places than if nothing moved?",
         flag="things are no nearer to their true places than if nothing moved"),
    _Ask(metric="contact_f1", worse=films.SHUFFLED, asks="Do things move when they are really touched?",
         flag="things move no more often at true contacts than with other actions"),
    _Ask(metric="moved_untouched", worse=films.SHUFFLED, asks="Do things rest when nothing touches them?",
         flag="things move untouched as often as with other actions"),
    _Ask(metric="penetration", worse=films.GLUED, asks="Does the body push things instead of passing through?",
         flag="the body enters things as if they did not react"),
    _Ask(metric="static_drift", worse=films.SHUFFLED, asks="Does the picture keep still when the body does?",
         flag="drifts as much when the body holds still as when it moves"),
    _Ask(metric="counterfactual", worse=films.SHUFFLED, asks="Do other actions lead to the right other places?",
         flag="what other actions would change is no better than by chance"),
    _Ask(metric="left_behind", worse=films.SHUFFLED, asks="Does a pushed thing stay when the body goes back?",
         flag="what was pushed does not stay behind"),
)  # fmt: skip


def checks() -> list[Check]:
    """Return the study's questions."""
    return [
        question(
            f"{NAME}_{ask.metric}_{ask.worse}",
            ask.metric,
            (NAME, films.MODEL),
            (NAME, ask.worse),
            asks=ask.asks,
            flag=f"forward: {ask.flag}",
        )
        for ask in _ASKS
    ]
