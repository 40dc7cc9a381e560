"""Intervals and claims of an ablation against closed forms, and against data that hold a known effect or none."""

import math

import pytest
import torch
from scipy.stats import t, ttest_rel

from wam_video.errors import ConfigError, DataError
from wam_video.evaluation.ablation import Difference, StatisticsConfig, differences, holm, summarize, verdict
from wam_video.evaluation.ablation_page import conclusions, markdown, render
from wam_video.evaluation.ablation_record import METRICS, Cell, Metric, Study, record
from wam_video.evaluation.by_episode import EpisodeSums, Scored, read_episodes, write_episodes
from wam_video.evaluation.metrics import ACTION_SUMS, VIDEO_SUMS

FACTS = {"dataset": "toy", "manifest_sha256": "0" * 64, "split": "val"}


def row(value: float, draws: torch.Tensor | None = None) -> torch.Tensor:
    noise = torch.zeros(100) if draws is None else draws
    return torch.cat([torch.tensor([value]), value + noise]).double()


def test_without_episode_noise_it_is_students_paired_t() -> None:
    a, b = [1.0, 2.5, 2.0, 4.0], [0.5, 1.0, 1.8, 2.0]
    table = {("a", i): row(x) for i, x in enumerate(a)} | {("b", i): row(x) for i, x in enumerate(b)}
    (found,) = differences(table, "b", 10, StatisticsConfig())
    expected = ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    s = found.summary
    assert (s.low, s.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert s.p_value == pytest.approx(expected.pvalue)
    assert found.per_seed == pytest.approx([0.5, 1.5, 0.2, 2.0])


def test_episodes_widen_the_interval_as_welch_and_satterthwaite_say() -> None:
    draws = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 0.3
    values = [1.0, 1.4, 0.9]
    found = summarize([row(v, draws) for v in values], range(3), 21, 0.95)
    seeds, episodes = torch.tensor(values).double().var().item() / 3, draws.double().var().item()
    df = (seeds + episodes) ** 2 / (seeds**2 / 2 + episodes**2 / 20)
    half = t.ppf(0.975, df) * math.sqrt(seeds + episodes)
    assert found.mean == pytest.approx(1.1)
    assert (found.low, found.high) == (pytest.approx(1.1 - half, rel=1e-4), pytest.approx(1.1 + half, rel=1e-4))


def test_one_seed_or_one_episode_gives_no_interval_and_no_claim() -> None:
    for found in (summarize([row(3.0)], [0], 10, 0.95), summarize([row(3.0), row(3.1)], [0, 1], 1, 0.95)):
        assert found.low is None and found.p_value is None
        difference = Difference(variant="a", summary=found, per_seed=(3.0,), residual=False)
        assert verdict(difference, None, 1, 0.95) == "none"


def test_a_pooled_deviation_is_the_residual_of_variants_and_seeds() -> None:
    y = torch.tensor([[1.0, 2.0, 4.0], [2.0, 2.5, 5.5], [0.0, 3.0, 3.0]]).double()
    table = {(name, k): row(float(y[i, k])) for i, name in enumerate("abc") for k in range(3)}
    found = differences(table, "a", 10, StatisticsConfig(seed_spread="pooled"))[0].summary
    rest = y - y.mean(0) - y.mean(1, keepdim=True) + y.mean()
    half = t.ppf(0.975, 4) * math.sqrt(2 * (rest.square().sum().item() / 4) / 3)
    assert found.high - found.mean == pytest.approx(half)
    table.pop(("c", 2))  # incomplete: it is left out of the pool and stands on its own
    pooled = {d.variant: d.residual for d in differences(table, "a", 10, StatisticsConfig(seed_spread="pooled"))}
    assert pooled == {"b": True, "c": False}


def test_only_seeds_that_both_have_are_compared() -> None:
    table = {("a", 0): row(1.0), ("a", 1): row(2.0), ("b", 1): row(5.0), ("b", 2): row(9.0)}
    (found,) = differences(table, "a", 10, StatisticsConfig())
    assert found.summary.seeds == (1,) and found.per_seed == (3.0,)


def test_holm_steps_down_and_never_back() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_interval_covers_a_true_effect_as_often_as_it_says() -> None:
    """Seeds and episodes are both drawn anew; 95 % intervals of a difference of 0.5 hold it about so often."""
    generator = torch.Generator().manual_seed(1)
    held, trials, num_seeds, num_episodes = 0, 300, 3, 20
    for _ in range(trials):
        episode = torch.randn(num_episodes, generator=generator) * 0.5
        counts = torch.multinomial(torch.ones(200, num_episodes), num_episodes, replacement=True, generator=generator)
        rows = []
        for _ in range(num_seeds):
            values = 0.5 + torch.randn(1, generator=generator) * 0.3 + episode
            values = values + torch.randn(num_episodes, generator=generator) * 0.1
            rows.append(torch.cat([values.mean()[None], values[counts].mean(1)]))
        found = summarize(rows, range(num_seeds), num_episodes, 0.95)
        held += found.low <= 0.5 <= found.high
    assert 0.925 <= held / trials <= 1.0


def body(error: float, *, shuffled: float = 2.0, seed: int = 0, scale: float = 1.0) -> EpisodeSums:
    """Twelve episodes whose action errors have this mean square, give or take; moving pixels alike."""
    generator = torch.Generator().manual_seed(seed)
    noise = 1 + 0.05 * torch.randn(12, generator=generator).double()

    def actions(mse: float) -> torch.Tensor:
        parts = {"n": 10.0, "absolute": 1.0, "squared": 10 * mse, "target": 0.0, "target2": 10.0}
        sums = torch.tensor([parts.get(k, 1.0) for k in ACTION_SUMS]).double()[None, :, None, None].repeat(12, 1, 1, 2)
        sums[:, ACTION_SUMS.index("squared")] *= noise[:, None, None]
        return sums

    def video(mse: float) -> torch.Tensor:
        sums = torch.ones(12, len(VIDEO_SUMS), 1).double()
        sums[:, VIDEO_SUMS.index("se_moving"), 0] = mse * noise
        return sums

    return EpisodeSums(
        embodiment="arm",
        episodes=tuple(f"e{i:02d}" for i in range(12)),
        action_scale=torch.full((2,), scale).double(),
        video={
            ("forward", "model"): video(0.01 * error),
            ("forward", "shuffled_actions"): video(0.01 * shuffled),
            ("video", "model"): video(0.01),
        },
        actions={(mode, "model"): actions(error) for mode in ("policy", "inverse", "joint")},
    )


def study(**changes) -> Study:
    settings = {
        **{"name": "toy", "reference": "a", "variants": {"a": [], "b": ["x=1"], "c": ["x=2"]}, "seeds": [0, 1, 2]},
        **{"metrics": METRICS, "conditions": {"steps": 3}, "statistics": StatisticsConfig(num_draws=200)},
    }
    return Study(**(settings | changes))


def cells(**errors: list[float]) -> list[Cell]:
    return [
        Cell(variant=name, seed=k, scored=Scored(facts=FACTS, bodies={"arm": body(x, seed=10 * k)}))
        for name, values in errors.items()
        for k, x in enumerate(values)
    ]


SAME, WORSE = [0.50, 0.52, 0.49], [0.90, 0.92, 0.893]
UNSURE = [0.40, 0.62, 0.50]


def test_what_differs_is_claimed_and_what_does_not_is_not() -> None:
    document = record(study(), cells(a=SAME, b=WORSE, c=UNSURE))
    said = {(d["variant"], d["metric"]): d["verdict"] for d in document["differences"]}
    assert said["b", "policy.nrmse"] == said["b", "policy.r2"] == said["b", "forward.psnr_moving"] == "worse"
    assert {verdict for (name, _), verdict in said.items() if name == "c"} == {"none"}
    assert said["b", "video.psnr_moving"] == "none"  # equal to the bit
    by_name = {(d["variant"], d["metric"]): d for d in document["differences"]}
    d = by_name["b", "policy.nrmse"]
    assert d["low"] > 0 and d["p_value"] < d["p_holm"] < 0.05  # less is better: above 0 is worse
    assert by_name["b", "forward.psnr_moving-shuffled_actions"]["mean"] == pytest.approx(
        by_name["b", "forward.psnr_moving"]["mean"]
    )
    told = "\n".join(conclusions(document))
    assert "policy, NRMSE, arm: b (+0." in told and "no difference can be claimed for c" in told
    assert "video, PSNR of moving pixels (dB), arm: no difference to the reference can be claimed" in told
    assert "*worse*" in markdown(document) and "16 in all" in markdown(document)
    assert "the same steps and data;" in markdown(document)
    assert "fewer where" not in markdown(document)
    longer = {**document, "variants": {**document["variants"], "b": ["steps=9", "x=1"]}}
    assert "steps by variant (`a` as configured, `b` 9, `c` as configured)" in markdown(longer)
    assert render(document) == render(document) and "no difference can be claimed" in render(document)


def test_one_scale_is_used_for_all_cells() -> None:
    """A variant that saw other data has other statistics; its errors are divided by the reference's all the same."""
    mine = cells(a=SAME)
    others = [
        Cell(variant="b", seed=c.seed, scored=Scored(facts=FACTS, bodies={"arm": body(e, seed=10 * c.seed, scale=9.0)}))
        for c, e in zip(mine, SAME, strict=True)
    ]
    document = record(study(variants={"a": [], "b": []}), [*mine, *others])
    assert {d["mean"] for d in document["differences"]} == {0.0}


def test_other_episodes_are_refused() -> None:
    made = cells(a=SAME, b=WORSE)
    bodies = made[-1].scored.bodies
    bodies["arm"].video["forward", "model"][3, VIDEO_SUMS.index("frames")] += 1  # one more window of an episode
    with pytest.raises(DataError, match="not scored on the same windows"):
        record(study(variants={"a": [], "b": []}), made)


def test_missing_cells_are_told_and_nothing_is_made_up() -> None:
    missing = [{"variant": "b", "seed": 0, "reason": "train failed"}]
    document = record(study(), cells(a=SAME), missing)
    assert document["differences"] == [] and len(document["means"]) == len(METRICS)
    assert "b, seed 0: train failed" in markdown(document) and "not scored" in markdown(document)
    assert "(fewer where some are missing" in markdown(document)
    assert record(study(), [], missing)["cells"] == []


def test_rollouts_are_paired_by_start() -> None:
    def rolled(name: str, seed: int, wins: int) -> Cell:
        starts = [
            {"task": "t", "start_id": f"s{i:02d}", "start_hash": "h", "success": i < wins, "best_progress": 0.5}
            for i in range(10)
        ]
        scored = Scored(facts=FACTS, bodies={})
        return Cell(variant=name, seed=seed, scored=scored, rollout={"episodes": starts})

    made = [rolled("a", k, 3) for k in range(3)] + [rolled("b", k, 5 + k) for k in range(3)]
    document = record(study(metrics=["rollout.success"]), made)
    (d,) = document["differences"]
    assert d["per_seed"] == pytest.approx([0.2, 0.3, 0.4]) and d["embodiment"] == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("polcy.r2", "Did you mean 'policy'"),
        ("policy.r3", "score"),
        ("rollout.success-x", "no conditions"),
        ("policy.psnr", "gives no video"),
        ("video.r2", "gives no actions"),
        ("forward.psnr_moving-shufled_actions", "Did you mean 'shuffled_actions'"),
    ],
)
def test_an_unknown_metric_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Metric.parse(name)


def test_sums_come_back_from_their_file(tmp_path) -> None:
    sums = body(0.5)
    again = read_episodes(write_episodes(tmp_path, [sums], FACTS)).bodies["arm"]
    assert again.episodes == sums.episodes and torch.equal(again.action_scale, sums.action_scale)
    assert all(torch.equal(again.video[k], sums.video[k]) for k in sums.video)
    assert all(torch.equal(again.actions[k], sums.actions[k]) for k in sums.actions)
    (tmp_path / "episodes.json").write_text("{}")
    with pytest.raises(DataError, match="evaluate again"):
        read_episodes(tmp_path / "episodes.json")
