"""`KVCache`: what a block-causal network remembers of the clean chunks before the one that it predicts.

Keys and values of every block, rotated to absolute times, so that they stay right wherever they lie; the metadata of each
token, so that `masks.visible` says of cached tokens what it says of others; and the keys and values of the prompt, computed
once. Memory is taken once: places for the first chunks that are never dropped (`sink_chunks`), then a ring of `window` chunks.

A cache is handed in and handed back: `cache = network.observe(cache, ...)`. The tensors inside are written in place, so one
that was handed in must not be used again. Rows of a batch may be at different chunks, and be reset one by one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wam_video.errors import ConfigError
from wam_video.models.attention import Context, HeadTensor
from wam_video.models.masks import TokenMeta


@dataclass(frozen=True, kw_only=True)
class CacheLayout:
    """Where chunks lie in a row of the cache."""

    first: int
    """Tokens of chunk 0."""
    chunk: int
    """Tokens of any other chunk."""
    sinks: int
    """Chunks that are never dropped."""
    ring: int
    """Chunks that are kept beside them."""
    drops: bool
    """Whether the oldest chunk of the ring makes room for a new one; False: the cache is full then."""

    @property
    def sink_tokens(self) -> int:
        """Places of the sinks."""
        return self.first + (self.sinks - 1) * self.chunk if self.sinks else 0

    @property
    def ring_place(self) -> int:
        """Places of a chunk of the ring."""
        return self.chunk if self.sinks else max(self.first, self.chunk)

    @property
    def tokens(self) -> int:
        """Places of a row."""
        return self.sink_tokens + self.ring * self.ring_place

    def start(self, chunk: int) -> int:
        """Return the first place of a chunk.

        Raises:
            ConfigError: There is no place left.
        """
        if chunk < self.sinks:
            return self.first + (chunk - 1) * self.chunk if chunk else 0
        index = chunk - self.sinks
        if index >= self.ring and not self.drops:
            raise ConfigError(
                f"the cache is full: it holds {self.sinks + self.ring} chunks; make it with more (max_chunks), reset the row, "
                "or train the network with a window (model.attention.window)"
            )
        return self.sink_tokens + (index % self.ring) * self.ring_place


class LayerCache:
    """Keys and values of one block (`attention.LayerMemory`)."""

    def __init__(
        self, key: HeadTensor, value: HeadTensor, contexts: Sequence[Context], rows: Int[Tensor, " p"] | None = None
    ) -> None:
        self.key, self.value = key, value
        self.contexts = list(contexts)
        self._rows = rows
        self._filled = 0
        self._target: tuple[Int[Tensor, " r"], Int[Tensor, "r n"]] | None = None

    @property
    def past(self) -> tuple[HeadTensor, HeadTensor] | None:
        """Keys and values of the places in use."""
        if self._filled == 0:
            return None
        key, value = self.key[:, : self._filled], self.value[:, : self._filled]
        return (key, value) if self._rows is None else (key[self._rows], value[self._rows])

    def context(self, tower: int) -> Context:
        """Return the prompt's keys and values."""
        return self.contexts[tower]

    def keep(self, key: HeadTensor, value: HeadTensor) -> None:
        """Write the call's keys and values, if it is one that observes."""
        if self._target is not None:
            rows, places = self._target
            own = (rows if self._rows is None else self._rows[rows])[:, None]
            self.key[own, places] = key[rows]
            self.value[own, places] = value[rows]

    def prepare(self, filled: int, target: tuple[Int[Tensor, " r"], Int[Tensor, "r n"]] | None) -> "LayerCache":
        """Say how much the next call may read, and where it writes."""
        self._filled, self._target = filled, target
        return self

    def part(self, rows: Int[Tensor, " p"]) -> "LayerCache":
        """Return some rows, over the same memory."""

        def pick(context: HeadTensor, _: HeadTensor) -> HeadTensor:
            return context[rows]

        contexts = [_merge(pick, context, context) for context in self.contexts]
        return LayerCache(self.key, self.value, contexts, rows if self._rows is None else self._rows[rows])


@dataclass(frozen=True, kw_only=True)
class KVCache:
    """The memory of a batch; `WAMTransformer.new_cache` makes one."""

    layers: tuple[LayerCache, ...]
    meta: TokenMeta
    """Of every place."""
    counts: tuple[int, ...]
    """Chunks that each row has observed: the number of the chunk that comes next."""
    layout: CacheLayout
    last_frame: Float[Tensor, "b v c 1 h w"]
    """The last observed frame of each row (for `residual_video`)."""
    filled: int = 0
    """Places that some row has used since all were empty; the reset of a row does not free them, so that the shapes, and with
    them the bits, of the other rows stay."""
    solid: bool = field(init=False)
    """Whether all rows have observed as many chunks and no place between them is free; then nothing needs hiding."""
    next_chunk: Int[Tensor, " b"] = field(init=False)
    """Number of the chunk that each row observes or predicts next: `counts` for the network, which a compiled one must not
    read as Python numbers, or it would be compiled anew for each chunk."""

    def __post_init__(self) -> None:
        used = sum(self.layout.chunk if chunk else self.layout.first for chunk in self._kept(self.counts[0]))
        object.__setattr__(self, "solid", len(set(self.counts)) == 1 and used == self.filled)
        object.__setattr__(self, "next_chunk", torch.tensor(self.counts, device=self.meta.real.device))

    def past_meta(self) -> TokenMeta | None:
        """Return the metadata of the places in use."""
        return self.meta.part(slice(0, self.filled)) if self.filled else None

    def memories(self) -> list[LayerCache]:
        """Return each block's memory, for reading."""
        return [layer.prepare(self.filled, None) for layer in self.layers]

    def writers(self, tokens: int, rows: Bool[Tensor, " b"] | None) -> list[LayerCache]:
        """Return each block's memory, for reading and for writing the next chunk of some rows (None: all).

        Raises:
            ConfigError: The chunk has another number of tokens than the cache has places for, or the cache is full.
        """
        selected = self._rows(rows)
        for row in selected:
            wanted = self.layout.chunk if self.counts[row] else self.layout.first
            if tokens != wanted:
                raise ConfigError(
                    f"{tokens} tokens were observed, but chunk {self.counts[row]} of the cache has {wanted}; chunk 0 has the "
                    "frames that new_cache was told, any other model.attention.chunk_frames and its actions"
                )
        device = self.meta.chunk.device
        starts = torch.tensor([self.layout.start(self.counts[row]) for row in selected], device=device)
        target = torch.tensor(selected, device=device), starts[:, None] + torch.arange(tokens, device=device)
        return [layer.prepare(self.filled, target) for layer in self.layers]

    def observed(
        self, meta: TokenMeta, frame: Float[Tensor, "b v c 1 h w"], rows: Bool[Tensor, " b"] | None
    ) -> "KVCache":
        """Return the cache with the next chunk of some rows, whose keys and values were written."""
        selected, tokens = self._rows(rows), meta.chunk.shape[1]
        fields = [field.clone() for field in self.meta]
        last = self.last_frame.clone()
        for row in selected:
            start = self.layout.start(self.counts[row])
            size = self._end(self.counts[row], whole=True) - start
            fields[3][row, start : start + size] = 0
            for place, value in zip(fields, meta, strict=True):
                place[row, start : start + tokens] = value[row if value.shape[0] > 1 else 0]
            last[row] = frame[row]
        counts = tuple(count + (row in selected) for row, count in enumerate(self.counts))
        filled = max([self.filled, *(self._end(self.counts[row]) for row in selected)])
        return replace(self, meta=TokenMeta(*fields), counts=counts, last_frame=last, filled=filled)

    def reset(self, rows: Bool[Tensor, " b"]) -> "KVCache":
        """Return the cache with some rows empty; the others keep every bit, and all keep their prompts."""
        real = self.meta.real.clone()
        real[rows.to(real.device)] = 0
        selected = self._rows(rows)
        counts = tuple(0 if row in selected else count for row, count in enumerate(self.counts))
        return replace(
            self, meta=self.meta._replace(real=real), counts=counts, filled=self.filled if any(counts) else 0
        )

    def part(self, rows: Sequence[int]) -> "KVCache":
        """Return some rows as a batch of their own over the same memory, so that a call computes those only.

        What it observes is written for good; `joined` takes up the rest.
        """
        if list(rows) == list(range(len(self.counts))):
            return self
        index = torch.tensor(rows, device=self.meta.real.device)
        return replace(
            self,
            layers=tuple(layer.part(index) for layer in self.layers),
            meta=TokenMeta(*(field[index] for field in self.meta)),
            counts=tuple(self.counts[row] for row in rows),
            last_frame=self.last_frame[index],
        )

    def joined(self, part: "KVCache", rows: Sequence[int]) -> "KVCache":
        """Return the cache after `part(rows)` has observed; the rows may be in any order."""
        if list(rows) == list(range(len(self.counts))):
            return part
        index = torch.tensor(rows, device=self.meta.real.device)
        counts = list(self.counts)
        for row, count in zip(rows, part.counts, strict=True):
            counts[row] = count
        return replace(
            self,
            meta=TokenMeta(*(old.index_copy(0, index, new) for old, new in zip(self.meta, part.meta, strict=True))),
            counts=tuple(counts),
            last_frame=self.last_frame.index_copy(0, index, part.last_frame),
            filled=max(self.filled, part.filled),
        )

    def with_contexts(self, contexts: Sequence[Sequence[Context]], rows: Bool[Tensor, " b"]) -> "KVCache":
        """Return the cache with other prompts in some rows; `contexts` has each block's towers."""
        chosen = rows.to(self.meta.real.device)[:, None, None, None]

        def pick(new: HeadTensor, old: HeadTensor) -> HeadTensor:
            return torch.where(chosen, new, old)

        for layer, towers in zip(self.layers, contexts, strict=True):
            layer.contexts = [_merge(pick, new, old) for new, old in zip(towers, layer.contexts, strict=True)]
        return replace(self)

    def _kept(self, count: int) -> list[int]:
        """Return the chunks that a row still has after `count`."""
        sinks, ring = self.layout.sinks, self.layout.ring
        return [*range(min(sinks, count)), *range(max(sinks, count - ring), count)]

    def _rows(self, rows: Bool[Tensor, " b"] | None) -> list[int]:
        wanted = [True] * len(self.counts) if rows is None else rows.tolist()
        return [row for row, want in enumerate(wanted) if want]

    def _end(self, chunk: int, *, whole: bool = False) -> int:
        """Return the place after a chunk; `whole`: after all places that it might have taken."""
        tokens = self.layout.chunk if chunk else self.layout.first
        if whole and chunk >= self.layout.sinks:
            tokens = self.layout.ring_place
        return self.layout.start(chunk) + tokens


def _merge(pick: Callable[[HeadTensor, HeadTensor], HeadTensor], new: Context, old: Context) -> Context:
    text = pick(new.text[0], old.text[0]), pick(new.text[1], old.text[1])
    if new.image is None or old.image is None:
        return Context(text, None)
    return Context(text, (pick(new.image[0], old.image[0]), pick(new.image[1], old.image[1])))


def empty_cache(
    layout: CacheLayout,
    contexts: Sequence[Sequence[Context]],
    last_frame: Float[Tensor, "b v c 1 h w"],
) -> KVCache:
    """Return a cache in which nothing was observed yet.

    Args:
        layout: Where chunks lie.
        contexts: Keys and values of the prompt, by block and tower; their heads, type and device are the cache's too.
        last_frame: Zeros of the shape and type of a latent frame.
    """
    batch = last_frame.shape[0]

    def layer(towers: Sequence[Context]) -> LayerCache:
        like = towers[0].text[0]
        shape = (batch, layout.tokens, *like.shape[2:])
        return LayerCache(like.new_zeros(shape), like.new_zeros(shape), towers)

    zeros = torch.zeros(batch, layout.tokens, dtype=torch.long, device=last_frame.device)
    return KVCache(
        layers=tuple(layer(towers) for towers in contexts),
        meta=TokenMeta(zeros, zeros.clone(), zeros.clone(), zeros.clone()),
        counts=(0,) * batch,
        layout=layout,
        last_frame=last_frame,
    )
