"""What a checkpoint must know of the data: embodiments, windows, and statistics that can't be mixed up."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import SchedulerMixin  # its load and save methods are those of a component that is only a config
from diffusers.configuration_utils import ConfigMixin
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wam_video.data.action_kinds import ActionKinds
from wam_video.data.normalize import Normalizer, Stats, stats_hash
from wam_video.data.schema import EmbodimentSpec
from wam_video.data.video import FITS
from wam_video.data.windows import WindowConfig
from wam_video.errors import CheckpointError, ConfigError, DataError, one_of

if TYPE_CHECKING:
    from wam_video.data.loader import WindowDataset


@dataclass(frozen=True, kw_only=True, eq=False)
class Origin:
    """Where robots are at time 0."""

    state: Float[Tensor, "b ds"]
    """In their own units."""
    mask: Bool[Tensor, "b ds"]
    """True where it is known."""
    rows: Bool[Tensor, " b"]
    """True where it matters: of the others the actions are not looked at."""


class WAMProcessor(SchedulerMixin, ConfigMixin):
    """Map actions and state of every embodiment to and from the model's units; a component like a scheduler."""

    config_name = "processor_config.json"

    def __init__(
        self,
        embodiments: list[dict[str, Any]],
        stats: Stats,
        normalization: str = "quantile",
        window: dict[str, Any] | None = None,
        stats_hash: str | None = None,
        fit: dict[str, str] | None = None,
        actions: dict[str, dict[str, str]] | None = None,
    ) -> None:
        """Build the tables.

        Args:
            embodiments: Fields of `EmbodimentSpec`, in the order of the network's own layers.
            stats: As `normalize.compute_stats` returns them.
            normalization: `quantile`, `mean_std` or `min_max`.
            window: Fields of `WindowConfig`.
            stats_hash: What `stats` must hash to; a saved processor holds it.
            fit: How recordings of another aspect ratio were brought to the stored size, by embodiment: `pad`, `crop` or
                `stretch`. An embodiment that is not named has `pad`, as all have in folders saved before this was stored.
            actions: What is told otherwise than it is recorded (`data.actions` of a run, see `action_kinds`); the statistics
                are then those of what is told.

        Raises:
            CheckpointError: The statistics do not have that hash, or lack an embodiment or a dimension.
            ConfigError: Unknown normalization or fit, repeated embodiment, or a wrong window or kind of actions.
        """
        stats = {name: {what: dict(fields) for what, fields in by.items()} for name, by in stats.items()}
        found = _hash(stats)
        if stats_hash is not None and stats_hash != found:
            raise CheckpointError(
                f"statistics of the processor hash to {found[:16]}, the checkpoint says {stats_hash[:16]}; the file was altered: "
                "fetch or export the checkpoint again"
            )
        self._specs = [_spec(values) for values in embodiments]
        names = [spec.name for spec in self._specs]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"processor embodiments are {names}; give at least one, each name once")
        self._index = {name: i for i, name in enumerate(names)}
        try:
            self.window = WindowConfig(**dict(window or {}))
        except TypeError as error:
            raise ConfigError(
                f"processor window: {error}; allowed: {', '.join(WindowConfig.__dataclass_fields__)}"
            ) from error
        self._fit = {name: dict(fit or {}).get(name, "pad") for name in names}
        for name, how in self._fit.items():
            if how not in FITS:
                raise ConfigError(one_of(f"processor fit of {name!r}", how, FITS))
        self.register_to_config(
            embodiments=[_plain(spec) for spec in self._specs],
            stats=stats,
            normalization=normalization,
            window=asdict(self.window),
            stats_hash=found,
            fit=dict(self._fit),
            actions={name: dict(kinds) for name, kinds in (actions or {}).items()},
        )
        self._kinds = {self.index(name): ActionKinds(self.spec(name), kinds) for name, kinds in (actions or {}).items()}
        self.max_action_dim = max(spec.action_dim for spec in self._specs)
        self.max_state_dim = max(spec.state_dim for spec in self._specs)
        self.num_views = min(self.window.max_views, max(len(spec.views) for spec in self._specs))
        self._tables = {
            "actions": self._table("actions", [spec.action_dim for spec in self._specs]),
            "state": self._table("state", [spec.state_dim for spec in self._specs]),
        }

    @classmethod
    def from_dataset(cls, dataset: "WindowDataset", normalization: str = "quantile") -> "WAMProcessor":
        """Return the processor of a dataset's embodiments, statistics and windows."""
        specs = [_plain(spec) for spec in dataset.embodiments.values()]
        window, told = asdict(dataset.window), dataset.config.actions
        return cls(specs, dataset.stats, normalization, window, stats_hash(dataset.stats), dataset.fit, told)

    def index(self, name: str) -> int:
        """Return an embodiment's place.

        Raises:
            ConfigError: The model does not know it.
        """
        if name not in self._index:
            raise ConfigError(one_of("embodiment", name, self._index))
        return self._index[name]

    def indices(self, names: Sequence[str]) -> Int[Tensor, " b"]:
        """Return the places of several embodiments; see `index`."""
        return torch.tensor([self.index(name) for name in names], dtype=torch.long)

    def spec(self, name: str) -> EmbodimentSpec:
        """Return what is known of an embodiment; see `index`."""
        return self._specs[self.index(name)]

    def action_dim(self, name: str) -> int:
        """Return an embodiment's action width; see `index`."""
        return self.spec(name).action_dim

    def fit(self, name: str) -> str:
        """Return how an embodiment's frames are resized (`data.video.resize`); see `index`."""
        return self._fit[self.spec(name).name]

    def normalize_actions(
        self, x: Float[Tensor, "b ta da"], embodiment_ids: Int[Tensor, " b"], origin: Origin | None = None
    ) -> Float[Tensor, "b ta da"]:
        """Return actions in the model's units, float32; padded dimensions become 0.

        Args:
            x: In the robot's own units.
            embodiment_ids: Of each row.
            origin: The states at time 0; needed where actions are told relative to them.

        Raises:
            ConfigError: Actions are told relative to the state, and it is not known.
            DataError: `x` is not as wide as the widest embodiment.
        """
        shift, scale, _ = self._gather("actions", x, embodiment_ids)
        told = self._changed(x, embodiment_ids, origin, "tell")
        return (told.float() - shift[:, None]) * scale[:, None]

    def denormalize_actions(
        self, x: Float[Tensor, "b ta da"], embodiment_ids: Int[Tensor, " b"], origin: Origin | None = None
    ) -> Float[Tensor, "b ta da"]:
        """Return actions in the robot's own units, float32; padded dimensions become 0. See `normalize_actions`."""
        shift, _, inverse = self._gather("actions", x, embodiment_ids)
        return self._changed(x.float() * inverse[:, None] + shift[:, None], embodiment_ids, origin, "recall")

    def _changed(self, x: Tensor, embodiment_ids: Tensor, origin: Origin | None, how: str) -> Tensor:
        """Return actions as they are told, or as they are recorded, of the embodiments for which that differs."""
        changed = x
        for number, kinds in self._kinds.items():
            rows = (embodiment_ids == number).nonzero()[:, 0].to(x.device)
            if not len(rows) or not kinds.changes:
                continue
            spec = self._specs[number]
            if (
                origin is None
                or not (kinds.needed(origin.mask.to(x.device)[rows]) | ~origin.rows.to(x.device)[rows]).all()
            ):
                raise ConfigError(
                    f"actions of embodiment {spec.name!r} are told to this model relative to the state, which is not given here; "
                    "give the state, or call the pipeline itself where a session does not pass it on"
                )
            changed = changed.clone() if changed is x else changed
            width, state = spec.action_dim, origin.state.to(x.device)[rows]
            changed[rows, :, :width] = getattr(kinds, how)(x[rows][..., :width], state).to(changed.dtype)
        return changed

    def normalize_state(self, x: Float[Tensor, "b ds"], embodiment_ids: Int[Tensor, " b"]) -> Float[Tensor, "b ds"]:
        """Return the state in the model's units, float32; see `normalize_actions`."""
        shift, scale, _ = self._gather("state", x, embodiment_ids)
        return (x.float() - shift) * scale

    def _gather(self, what: str, x: Tensor, embodiment_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        table = self._tables[what]
        if x.shape[-1] != table.shape[-1]:
            raise DataError(
                f"{what} is {x.shape[-1]} wide; this model's embodiments are padded to {table.shape[-1]}: pad with zeros"
            )
        return tuple(table[:, embodiment_ids.to(table.device)].to(x.device))  # type: ignore[return-value]

    def _table(self, what: str, dims: list[int]) -> Float[Tensor, "3 e d"]:
        """Return shift, scale and inverse scale of every embodiment, zero in padded dimensions."""
        table = np.zeros((3, len(dims), max(1, *dims)), np.float32)
        for row, (spec, width) in enumerate(zip(self._specs, dims, strict=True)):
            fields = self.config["stats"].get(spec.name, {}).get(what)
            if width == 0:
                continue
            if fields is None or len(fields["mean"]) != width:
                have = 0 if fields is None else len(fields["mean"])
                raise CheckpointError(
                    f"statistics hold {have} dimensions of {what} of embodiment {spec.name!r}, which has {width}; "
                    "compute them over a train split that holds it: `wam-video data stats SHARDS`"
                )
            normalizer = Normalizer(self.config["normalization"], fields)
            table[:, row, :width] = normalizer.shift, normalizer.scale, normalizer.inverse_scale
        return torch.from_numpy(table)


_hash = stats_hash  # `__init__` has an argument of that name


def _spec(values: Mapping[str, Any]) -> EmbodimentSpec:
    try:
        return EmbodimentSpec.from_dict(values)
    except TypeError as error:
        raise ConfigError(
            f"processor embodiment: {error}; allowed: {', '.join(EmbodimentSpec.__dataclass_fields__)}"
        ) from error


def _plain(spec: EmbodimentSpec) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(spec).items()}
