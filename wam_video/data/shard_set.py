"""One split of one folder of shards, opened for reading: its windows counted, its clips decoded through a cache."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Int, UInt16

from wam_video.data.latents import encoding_of
from wam_video.data.manifest import Manifest, SampleEntry, load_manifest, verify_manifest
from wam_video.data.reader import Clip, SampleError, because, load_clip, read_sample, sample_arrays, sample_info
from wam_video.data.rows import Rows
from wam_video.data.schema import EmbodimentSpec
from wam_video.data.store import StoreConfig, as_store
from wam_video.data.video import resize
from wam_video.data.windows import WindowConfig, anchors
from wam_video.errors import DataError, one_of


class ClipCache:
    """The most recently used decoded clips, as many as fit."""

    def __init__(self, max_bytes: int) -> None:
        """Hold at most `max_bytes`, but always the last clip, since its windows come together."""
        self._max, self._used = max_bytes, 0
        self._clips: OrderedDict[Hashable, Clip] = OrderedDict()

    def __reduce__(self) -> tuple[type["ClipCache"], tuple[int]]:
        """Leave the clips behind when a worker process gets a copy."""
        return ClipCache, (self._max,)

    def get(self, key: Hashable, load: Callable[[], Clip]) -> Clip:
        """Return the clip of that key, decoding it if it is not held."""
        if key in self._clips:
            self._clips.move_to_end(key)
            return self._clips[key]
        clip = load()
        self._clips[key] = clip
        self._used += clip.nbytes
        while self._used > self._max and len(self._clips) > 1:
            self._used -= self._clips.popitem(last=False)[1].nbytes
        return clip


class ShardSet:
    """The samples of one split and the windows that each of them holds."""

    def __init__(
        self,
        name: str,
        path: str,
        split: str,
        window: WindowConfig,
        *,
        shares: tuple[float, float] = (1.0, 0.0),
        store: StoreConfig | None = None,
        skip: Collection[str] = (),
        use_latents: bool = True,
    ) -> None:
        """Read the manifest and, on disk, check it against the files' sizes.

        Args:
            name: What the configuration calls the dataset.
            path: Folder of shards, or its address.
            split: `train` or `val`.
            window: What windows look like; without a size they get the stored one.
            shares: Of the episodes, by a hash of their names, that are read; and, from the far end of the hash, of those whose
                actions and state are hidden.
            store: How to read from an address.
            skip: `<name>/<key>` of samples that are never read.
            use_latents: Read the latents of a folder that holds them, not its pixels.

        Raises:
            DataError: The folder is no dataset, a shard is missing or cut short, or the split holds no window.
        """
        self.name, self.path, self.split = name, path, split
        self.store = as_store(path, store)
        manifest = load_manifest(self.store)
        if self.store.is_local:  # elsewhere it would take a question per shard: a missing one shows when it is read
            verify_manifest(path, manifest, hashes=False)
        self.embodiments = dict(manifest.embodiments)
        self.fit = str(manifest.options.get("fit", "pad"))
        self.size: tuple[int, int] = (int(manifest.options.get("height", 0)), int(manifest.options.get("width", 0)))
        self.decodes_lazily = False  # True: large videos of the stored size are decoded as windows are cut from them
        self.window = window if window.height else replace(window, height=self.size[0], width=self.size[1])
        self.encoding = encoding_of(manifest.options, name)
        if self.encoding and use_latents:
            self.encoding.check_window(self.window, name)
        elif self.encoding and not self.encoding.keep_video:
            raise DataError(
                f"dataset {name!r} ({path}) holds latents and no pixels, which are needed here; give the shards that it was made from"
            )
        else:
            self.encoding = None
        _check_split(manifest, split, f"dataset {name!r} ({path})")
        self._samples = tuple(pair for pair in manifest.split(split) if episode_share(pair[1].episode_id) < shares[0])
        self._visible = shares[0] * (1 - shares[1])
        for spec in self.embodiments.values():
            window.check_rate(spec)
        self._skip = {entry.partition("/")[2] for entry in skip if entry.partition("/")[0] == name}
        self._bad: dict[int, SampleError] = {}
        numbers = {shard.name: number for number, shard in enumerate(manifest.shards)}
        self.shards = np.array([numbers[shard.name] for shard, _ in self._samples], np.int64)
        self._hidden = np.array([not self.shows_actions(sample) for _, sample in self._samples], bool)
        self.counts = np.array([len(self.anchors(i)) for i in range(len(self._samples))], np.int64)
        self._ends = np.cumsum(self.counts)
        if not self.counts.sum():
            raise DataError(
                f"dataset {name!r} ({path}), split {split!r}, holds no window: it has {len(self._samples)} clips in a share of "
                f"{shares[0]:g} of its episodes, too short for future_stride_s {window.future_stride_s}; take more, or a shorter one"
            )

    def __len__(self) -> int:
        """Windows in all."""
        return int(self.counts.sum())

    @property
    def salt(self) -> int:
        """A number that differs between datasets of one run, for their orders."""
        return int.from_bytes(hashlib.sha256(f"{self.name}/{self.split}".encode()).digest()[:4], "big")

    def anchors(self, clip: int) -> Int[np.ndarray, " n"]:
        """Return the stored frames of a clip at which its windows have their time 0."""
        _, sample = self._samples[clip]
        found = self._all_anchors(clip, 0 if self._hidden[clip] else sample.num_actions)
        return np.intersect1d(found, self._encoded(clip)) if self.encoding else found

    def _all_anchors(self, clip: int, num_actions: int) -> Int[np.ndarray, " n"]:
        _, sample = self._samples[clip]
        return anchors(sample.num_frames, num_actions, self.embodiments[sample.embodiment], self.window)

    def _encoded(self, clip: int) -> Int[np.ndarray, " n"]:
        """Return the frames at which the windows of the stored latents have their time 0."""
        every = self.encoding.every if self.encoding else 1
        return self._all_anchors(clip, self._samples[clip][1].num_actions)[::every]

    def cut_latents(self, decoded: Clip, clip: int, frame: int) -> UInt16[np.ndarray, "v c t h w"] | None:
        """Return the stored latents of one window, zeros for absent views; None for a dataset of pixels.

        Raises:
            SampleError: They can't be read.
        """
        return self._cut_encoded(decoded.latents, clip, frame) if self.encoding else None

    def cut_teacher(self, decoded: Clip, clip: int, frame: int) -> UInt16[np.ndarray, "v d t h w"] | None:
        """Return the stored features of a teacher, likewise; None where there are none.

        Raises:
            SampleError: They can't be read.
        """
        return self._cut_encoded(decoded.teacher, clip, frame) if self.encoding and self.encoding.teacher else None

    def _cut_encoded(
        self, by_view: Mapping[str, UInt16[np.ndarray, "n c t h w"] | Rows], clip: int, frame: int
    ) -> UInt16[np.ndarray, "v c t h w"]:
        row = int(np.searchsorted(self._encoded(clip), frame))
        views = self.spec(clip).views[: self.window.max_views]
        shape = next(iter(by_view.values())).shape[1:]
        found = np.zeros((self.window.max_views, *shape), np.uint16)
        for place, view in enumerate(views):
            if view in by_view:
                with because("arrays"):
                    found[place] = by_view[view][row]
        return found

    @property
    def shows_all_actions(self) -> bool:
        """Say whether all episodes of the folder are read with their actions."""
        return self._visible >= 1

    def shows_actions(self, sample: SampleEntry) -> bool:
        """Say whether a sample of the folder is of the episodes whose actions are read."""
        return episode_share(sample.episode_id) < self._visible

    @property
    def num_clips(self) -> int:
        """Clips that hold a window."""
        return int((self.counts > 0).sum())

    def place(self, index: int) -> tuple[int, int]:
        """Return (clip, window of that clip) of an index in stored order."""
        clip = int(np.searchsorted(self._ends, index, side="right"))
        return clip, index - (int(self._ends[clip - 1]) if clip else 0)

    def clips_of(self, shard: str) -> list[tuple[int, SampleEntry]]:
        """Return the clips of one shard, each with its entry."""
        return [(i, sample) for i, (entry, sample) in enumerate(self._samples) if entry.name == shard]

    def key(self, clip: int) -> str:
        """Return the sample's key."""
        return self._samples[clip][1].key

    def episode(self, clip: int) -> str:
        """Return the episode that a clip is cut from."""
        return self._samples[clip][1].episode_id

    def spec(self, clip: int) -> EmbodimentSpec:
        """Return the embodiment of a clip."""
        return self.embodiments[self._samples[clip][1].embodiment]

    def numbers(self, clip: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the actions and the state of a clip, without its video; None where its actions are hidden or it has none.

        Raises:
            DataError: The clip has actions and no state, or is damaged.
        """
        shard, sample = self._samples[clip]
        at = f"shard {self.store.where(shard.name)!r}, sample {sample.key!r}"
        if not sample.num_actions or not self.shows_actions(sample):
            return None
        members = read_sample(self.store, shard, sample)
        arrays = sample_arrays(members, sample_info(members, at), at)
        actions, state = arrays["actions"], arrays["state"]
        if actions is None or state is None:
            raise DataError(f"{at}: has no state, which data.actions of {sample.embodiment!r} needs; set it to stored")
        return actions, state

    def load(self, clip: int, cache: ClipCache, decoder: str) -> Clip:
        """Return a decoded clip at the window's size, from the cache where it is held.

        Raises:
            SampleError: The sample can't be used; the message names shard and key.
        """
        if known := self._bad.get(clip):
            raise SampleError(str(known), known.reason)
        try:
            return cache.get((self.name, self.split, clip), lambda: self._decode(clip, decoder))
        except SampleError as error:
            if error.reason != "unreachable":  # that may pass, and what it is at another time must not depend on now
                self._bad[clip] = error
            raise

    def _decode(self, clip: int, decoder: str) -> Clip:
        shard, sample = self._samples[clip]
        if sample.key in self._skip:
            raise SampleError(f"data.skip names {self.name}/{sample.key}", "listed")
        views = self.embodiments[sample.embodiment].views[: self.window.max_views]
        pixels, latents = ((), views) if self.encoding else (views, ())
        lazy = self.decodes_lazily and self.size == (self.window.height, self.window.width)
        decoded = load_clip(self.store, shard, sample, views=pixels, decoder=decoder, latent_views=latents, lazy=lazy)
        if self.encoding:  # frames without pixels: there is still a window to cut, and a mask of what was recorded
            blank = np.zeros((sample.num_frames, 0, 0, 3), np.uint8)
            decoded = replace(decoded, video={view: blank for view in views if view in decoded.latents})
        with because("manifest"):
            self._check(shard.name, sample, decoded)
            self._check_latents(shard.name, sample, decoded, len(self._encoded(clip)))
        if self._hidden[clip]:
            decoded = replace(decoded, actions=None, state=None, reward=None)
        height, width = self.window.height or 0, self.window.width or 0
        video = {
            view: frames
            if self.encoding or frames.shape[1:3] == (height, width)
            else np.stack([resize(frame, height, width, self.fit) for frame in frames])
            for view, frames in decoded.video.items()
        }
        return replace(decoded, video=video)

    def _check_latents(self, shard: str, sample: SampleEntry, clip: Clip, windows: int) -> None:
        at = f"shard {self.store.where(shard)!r}, sample {sample.key!r}"
        taught = bool(self.encoding and self.encoding.teacher)
        if taught and clip.teacher.keys() != clip.latents.keys():
            raise DataError(f"{at}: it has no teacher features of a view; encode the dataset again")
        for kind, by_view in (("latents", clip.latents), ("teacher features", clip.teacher)) if self.encoding else ():
            for view, rows in by_view.items():
                if len(rows) != windows:
                    raise DataError(
                        f"{at}: {kind} of view {view!r} are of {len(rows)} windows, the manifest has {windows}; "
                        "encode the dataset again"
                    )

    def _check(self, shard: str, sample: SampleEntry, clip: Clip) -> None:
        """Refuse a sample that contradicts the manifest, from which its windows were counted."""
        at, spec = f"shard {self.store.where(shard)!r}, sample {sample.key!r}", self.embodiments[sample.embodiment]
        if not clip.video:
            wanted = ", ".join(spec.views[: self.window.max_views])
            raise DataError(f"{at}: it has none of the views {wanted}; raise window.max_views")
        for name, found, stated in (
            ("num_frames", clip.info.get("num_frames"), sample.num_frames),
            ("num_actions", clip.info.get("num_actions"), sample.num_actions),
            ("embodiment", clip.info.get("embodiment"), spec.name),
            ("fps", clip.info.get("fps"), spec.fps),
            ("action_rate", clip.info.get("action_rate"), spec.action_rate),
            ("width of actions", spec.action_dim if clip.actions is None else clip.actions.shape[1], spec.action_dim),
            ("width of state", spec.state_dim if clip.state is None else clip.state.shape[1], spec.state_dim),
        ):
            if found != stated:
                raise DataError(f"{at}: {name} is {found!r}, the manifest says {stated!r}; convert the dataset again")


def _check_split(manifest: Manifest, split: str, what: str) -> None:
    if split not in manifest.splits:
        held = manifest.splits
        told = one_of(f"{what}: split", split, held) if held else f"{what} is empty"
        raise DataError(f"{told} Convert it again, with other options if need be")
    for _, sample in manifest.split(split):
        if sample.embodiment not in manifest.embodiments:
            raise DataError(one_of(f"{what}: embodiment of {sample.key!r}", sample.embodiment, manifest.embodiments))


def episode_share(episode: str) -> float:
    """Return where an episode stands in [0, 1) by a hash of its name; a share of a dataset is what stands below it."""
    return int.from_bytes(hashlib.sha256(f"share:{episode}".encode()).digest()[:8], "big") / 2**64
