"""What the study of physics measures with: colours, silhouettes, Physics-IQ's masks; and what PushT declares."""

import numpy as np
import pytest
import torch

from wam_video.data.simulation import GroundTruth, Scene, Thing
from wam_video.evaluation.studies.physics.colours import find, mixtures
from wam_video.evaluation.studies.physics.imagine import Rhythm
from wam_video.evaluation.studies.physics.iq import combined, iq_scores, kernel_size, motion_masks
from wam_video.evaluation.studies.physics.silhouette import buried, place

WHITE, RED, BLUE = (255, 255, 255), (230, 40, 30), (30, 60, 250)
SCENE = Scene(
    view="top", scenery=(WHITE,), flat=True,
    body=Thing(name="body", colour=BLUE, place=(0.5, 0.5)), things=(Thing(name="thing", colour=RED, place=(0.5, 0.5)),),
)  # fmt: skip


def _squares(*boxes: tuple[tuple[int, int, int], int, int, int], side: int = 32) -> np.ndarray:
    frame = np.full((side, side, 3), 255, np.uint8)
    for colour, x, y, size in boxes:
        frame[y : y + size, x : x + size] = colour
    return frame


def test_an_edge_pixel_is_shared_between_the_two_colours_that_meet_in_it() -> None:
    palette = np.array([WHITE, RED, BLUE], np.float32)
    pixels = np.array([WHITE, RED, BLUE, (242, 148, 142), (130, 50, 140)], np.uint8)[None, None]
    shares = mixtures(pixels, palette)[0, 0]
    expected = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0], [0, 0.5, 0.5]]
    np.testing.assert_allclose(shares, expected, atol=0.02)


def test_a_thing_is_found_with_its_area_place_and_colour_and_stays_where_it_was_when_it_vanishes() -> None:
    film = np.stack([_squares((RED, 4, 6, 8), (BLUE, 20, 20, 4)), _squares((BLUE, 21, 20, 4))])
    tracks = find(film, SCENE)
    assert tracks["thing"].area.tolist() == [64, 0]
    assert tracks["thing"].pieces.tolist() == [1, 0]
    assert tracks["thing"].centre.tolist() == [[8, 10], [8, 10]]
    assert tracks["body"].centre.tolist() == [[22, 22], [23, 22]]
    assert tracks["thing"].colour[0].tolist() == list(RED)


def test_a_thing_that_comes_apart_is_two_pieces_and_a_speck_is_none() -> None:
    film = np.stack(
        [
            _squares((RED, 4, 4, 6)),
            _squares((RED, 4, 4, 4), (RED, 16, 4, 4)),
            _squares((RED, 4, 4, 6), (RED, 20, 20, 1)),
        ]
    )
    track = find(film, SCENE)["thing"]
    assert track.pieces.tolist() == [1, 2, 1]
    assert track.area.tolist() == [36, 32, 36]


@pytest.mark.parametrize(("x", "inside"), [(4, 0), (8, 0), (10, 8), (14, 16)])
def test_what_lies_inside_a_thing_is_counted_from_its_silhouette(x: int, inside: int) -> None:
    thing = (RED, 12, 8, 10)
    film = np.stack([_squares(thing), _squares(thing, (BLUE, x, 12, 4))])
    real = find(film[:1], SCENE)["thing"]
    tracks = find(film, SCENE, {"body": 16, "thing": 100})
    assert buried(tracks["body"], tracks["thing"], real)[1] == pytest.approx(inside, abs=0.75)


def test_a_silhouette_is_moved_and_turned_about_its_middle() -> None:
    template = np.zeros((21, 21))
    template[8:13, 4:17] = 1
    turned = place(template, np.array([10.0, 10.0]), np.array([11.0, 10.0, np.pi / 2]))
    assert turned[5:18, 8:13].mean() == pytest.approx(1.0, abs=0.01)
    assert turned.sum() == pytest.approx(template.sum(), rel=0.01)


def test_masks_follow_the_published_running_mean() -> None:
    dark, light = np.zeros((1, 8, 8, 3), np.uint8), np.full((1, 8, 8, 3), 20, np.uint8)
    film = np.concatenate([dark, light, light, light])
    # means 6, 10.2, 13.1: the difference exceeds 10 only at first, and the first picture has no mask
    assert motion_masks(film).mean((1, 2)).tolist() == [0, 1, 0, 0]


def test_scores_of_the_same_film_are_perfect_and_a_frozen_one_overlaps_nowhere() -> None:
    film = np.stack([_squares((RED, 2 + 4 * i, 8, 6)) for i in range(5)])
    assert iq_scores(film, film).tolist() == [1, 1, 1, 0]
    spatial, weighted, per_frame, error = iq_scores(np.repeat(film[:1], 5, 0), film)
    assert (spatial, weighted) == (0, 0)
    assert per_frame == pytest.approx(0.2)  # the first masks are both empty
    assert error > 0


def test_the_combined_score_is_that_of_the_benchmark() -> None:
    variance = torch.tensor([0.8, 0.8, 0.5, 0.01])
    assert float(combined(variance, variance)) == pytest.approx(100)
    half = torch.tensor([0.4, 0.4, 0.25, 0.06])
    assert float(combined(half, variance)) == pytest.approx(45)
    assert float(combined(torch.tensor([0.0, 0, 0, 1.0]), variance)) == 0
    assert combined(half, torch.tensor([0.0, 0.8, 0.5, 0.01])).isnan(), (
        "a second take that shares nothing normalises nothing"
    )


def test_kernels_shrink_with_the_picture() -> None:
    assert [kernel_size(h) for h in (64, 128, 256, 512, 1080)] == [1, 1, 3, 5, 5]


def test_windows_follow_each_other_without_a_gap() -> None:
    rhythm = Rhythm(back=(2, 0), ahead=(4, 8))
    assert rhythm.moments(24) == [0, 8, 16]
    assert rhythm.steps(24) == [4, 8, 12, 16, 20, 24]
    assert rhythm.steps(20) == [4, 8, 12, 16, 20]


def test_pusht_says_where_things_are_and_when_the_pusher_touches_the_block() -> None:
    pytest.importorskip("gym_pusht")
    from data_pipelines.pusht import PushTEnvironment

    world = PushTEnvironment(size=(64, 64))
    assert isinstance(world, GroundTruth)
    world.reset("pusht", [5, 0])
    expert, rng = world.expert(np.random.default_rng(0)), []
    for _ in range(40):
        before = world.table.block
        world.step(expert())
        rng.append((bool(np.abs(world.table.block - before).max() > 1.0), bool(world.contacts())))
    assert any(moved for moved, _ in rng)
    assert all(touched for moved, touched in rng if moved)
    assert not rng[0][1]
    scene, picture = world.objects(), world.frames()["top"][None]
    for name, track in find(picture, scene).items():
        true = next(t.place for t in (scene.body, *scene.things) if t.name == name)
        assert np.abs(track.centre[0] - 64 * np.array(true)).max() < 0.5, name
