"""What a disturbance does to an episode: the picture's camera, light and foreign shapes, and where it starts.

All of it happens to pictures, so it means the same in every simulator. The body's own numbers stay true.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from wam_video.data.simulation import Disturbance, Environment

_MAX_SHIFT = 1 / 8
_MAX_TURN_DEG = 15.0
_MAX_ZOOM = 0.15
_MAX_LIGHT = 0.5
_MAX_TINT = 0.2
_NUM_DISTRACTORS = 6
_START_S = 2.0
_OVERSAMPLE = 4


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A foreign thing that lies in the picture; lengths are shares of the picture's side."""

    x: float
    y: float
    radius: float
    colour: tuple[int, int, int]
    is_round: bool


@dataclass(frozen=True, kw_only=True)
class Look:
    """How one episode looks, drawn once at its start."""

    shift: tuple[float, float] = (0.0, 0.0)
    turn_deg: float = 0.0
    zoom: float = 1.0
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    shapes: tuple[Shape, ...] = ()

    def __call__(self, frame: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """Return the frame as this episode shows it."""
        image = Image.fromarray(frame)
        if self.shapes:
            image = _draw(image, self.shapes)
        if self.shift != (0.0, 0.0) or self.turn_deg or self.zoom != 1.0:
            image = self._move(image)
        pixels = np.asarray(image)
        if self.gain != (1.0, 1.0, 1.0):
            pixels = np.rint(np.clip(pixels * np.asarray(self.gain), 0, 255)).astype(np.uint8)
        return pixels

    def _move(self, image: Image.Image) -> Image.Image:
        """Turn and scale about the middle, then shift; what comes into view is the colour of the nearest edge."""
        w, h = image.size
        angle = np.deg2rad(self.turn_deg)
        c, s = np.cos(angle) / self.zoom, np.sin(angle) / self.zoom
        cx, cy = w / 2 + self.shift[0] * w, h / 2 + self.shift[1] * h
        matrix = (c, s, w / 2 - c * cx - s * cy, -s, c, h / 2 + s * cx - c * cy)
        pad = max(w, h) // 2
        wide = Image.fromarray(np.pad(np.asarray(image), ((pad, pad), (pad, pad), (0, 0)), mode="edge"))
        shifted = (c, s, matrix[2] + pad, -s, c, matrix[5] + pad)
        return wide.transform((w, h), Image.Transform.AFFINE, shifted, Image.Resampling.BILINEAR)


def _draw(image: Image.Image, shapes: tuple[Shape, ...]) -> Image.Image:
    w, h = image.size
    layer = Image.new("RGBA", (w * _OVERSAMPLE, h * _OVERSAMPLE), (0, 0, 0, 0))
    pen = ImageDraw.Draw(layer)
    for shape in shapes:
        x, y, r = (shape.x * layer.width, shape.y * layer.height, shape.radius * layer.width)
        draw = pen.ellipse if shape.is_round else pen.rectangle
        draw((x - r, y - r, x + r, y + r), fill=(*shape.colour, 255))
    layer = layer.resize((w, h), Image.Resampling.BOX)
    result = image.convert("RGBA")
    result.alpha_composite(layer)
    return result.convert("RGB")


def draw_look(disturbance: Disturbance, rng: np.random.Generator) -> Look:
    """Draw how an episode looks; the same number of draws whatever is disturbed.

    Args:
        disturbance: How much.
        rng: Of the episode.
    """
    camera, light = disturbance.camera, disturbance.light
    shift, turn, zoom = rng.uniform(-1, 1, 2), rng.uniform(-1, 1), rng.uniform(-1, 1)
    brightness, tint = rng.uniform(-1, 1), rng.uniform(-1, 1, 3)
    count = round(_NUM_DISTRACTORS * disturbance.distractors)
    gain = np.maximum((1 + _MAX_LIGHT * light * brightness) * (1 + _MAX_TINT * light * tint), 0.1)
    return Look(
        shift=(float(_MAX_SHIFT * camera * shift[0]), float(_MAX_SHIFT * camera * shift[1])),
        turn_deg=float(_MAX_TURN_DEG * camera * turn),
        zoom=float(1 + _MAX_ZOOM * camera * zoom),
        gain=(float(gain[0]), float(gain[1]), float(gain[2])) if light else (1.0, 1.0, 1.0),
        shapes=tuple(_shape(rng) for _ in range(count)),
    )


def _shape(rng: np.random.Generator) -> Shape:
    x, y, radius = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.02, 0.06)
    red, green, blue = (int(c) for c in rng.integers(0, 256, 3))
    return Shape(x=x, y=y, radius=radius, colour=(red, green, blue), is_round=bool(rng.random() < 0.5))


def disturb_start(
    environment: Environment, disturbance: Disturbance, rng: np.random.Generator
) -> list[Float[np.ndarray, " da"]]:
    """Act at random before the episode begins, each action held for a fifth of a second; return what was done."""
    steps = round(_START_S * disturbance.start * environment.spec.action_rate)
    hold = max(1, round(0.2 * environment.spec.action_rate))
    done = []
    action = environment.hold()
    for step in range(steps):
        if step % hold == 0:
            action = environment.random(rng)
        environment.step(action)
        done.append(action)
    return done
