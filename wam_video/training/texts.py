"""Prompts that were encoded before training: in a file beside the shards, and back.

`texts.safetensors` holds one array a prompt, under the sha256 of its letters: the embeddings up to the prompt's end (what follows
is zeros, and not stored), in the encoder's own precision. Its header names the encoder by a hash, and another one is refused.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wam_video.data.manifest import load_manifest
from wam_video.data.reader import read_sample, sample_info
from wam_video.data.settings import DataConfig
from wam_video.data.store import Store, as_store
from wam_video.errors import DataError, first_line
from wam_video.models.text import encode_text
from wam_video.training.durable import write_tensors

NAME = "texts.safetensors"
_ENCODER = "__encoder__"
"""Key of the encoder's hash, as bytes."""


def text_hash(tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel) -> str:
    """Return a hash of a text encoder's configuration, float32 weights, and of how its tokenizer cuts a sentence."""
    config = {k: v for k, v in encoder.config.to_dict().items() if not k.startswith(("_", "torch_dtype", "dtype"))}
    sentence = tokenizer("Fold the towel; put 2 blocks left.", truncation=True).input_ids
    facts = [type(encoder).__name__, config, type(tokenizer).__name__, tokenizer.model_max_length, sentence]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def prompts_of(folder: str | Path | Store) -> list[str]:
    """Return every prompt of a folder of shards, each once, and the empty one, which guidance trains on."""
    store, found = as_store(folder), {""}
    for shard in load_manifest(store).shards:
        for sample in shard.samples:
            info = sample_info(read_sample(store, shard, sample), f"shard {shard.name!r}, sample {sample.key!r}")
            found.update(map(str, info.get("prompts") or ()))
    return sorted(found)


@torch.no_grad()
def write_texts(
    folder: Path, prompts: Iterable[str], tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel
) -> int:
    """Encode prompts, each by itself, into the folder's file; return how many there are.

    Raises:
        DataError: It can't be written.
    """
    tensors = {_ENCODER: torch.tensor(list(text_hash(tokenizer, encoder).encode()), dtype=torch.uint8)}
    for prompt in prompts:
        row = encode_text(tokenizer, encoder, [prompt])[0].cpu()
        used = int(row.any(dim=-1).nonzero().max()) + 1 if row.any() else 0
        tensors[_key(prompt)] = row[:used].contiguous()
    unfinished = folder / f"{NAME}.tmp"
    try:
        write_tensors(unfinished, tensors)
        unfinished.replace(folder / NAME)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise DataError(
            f"can't write to {str(folder)!r}: {error.strerror or error}; make room or give it write permission, and start again"
        ) from error
    return len(tensors) - 1


class StoredTexts:
    """Embeddings by prompt, from the files beside the datasets of a run."""

    def __init__(self, rows: Mapping[str, Tensor], length: int) -> None:
        self._rows, self._length = rows, length

    @classmethod
    def open(
        cls, config: DataConfig, tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel
    ) -> "StoredTexts | None":
        """Read the files of all datasets; None where none of them has one.

        Raises:
            DataError: One is of another encoder, or broken.
        """
        rows: dict[str, Tensor] = {}
        wanted = ""
        for name, dataset in config.datasets.items():
            store = as_store(dataset.path, config.store)
            try:
                tensors = load(store.read(NAME))
                held = bytes(tensors.pop(_ENCODER).tolist()).decode()
            except (FileNotFoundError, PermissionError):  # how some stores say that it is not there
                continue
            except (SafetensorError, KeyError, UnicodeDecodeError, ValueError) as error:
                raise DataError(
                    f"dataset {name!r}: {store.where(NAME)!r} is broken ({first_line(error)}); encode the prompts again (wam-video data "
                    "encode --texts), copy it again, or remove the file"
                ) from error
            wanted = wanted or text_hash(tokenizer, encoder)
            if held != wanted:
                raise DataError(
                    f"dataset {name!r}: {store.where(NAME)!r} is of the text encoder {held[:12]}, the run has {wanted[:12]}; "
                    "encode the prompts again (wam-video data encode --texts) or remove the file"
                )
            rows |= tensors
        return cls(rows, tokenizer.model_max_length) if wanted else None

    def get(self, prompt: str) -> Float[Tensor, "s dt"] | None:
        """Return a prompt's embeddings with the zeros after its end, on the CPU; None if they are not there."""
        row = self._rows.get(_key(prompt))
        if row is None:
            return None
        return torch.cat([row, row.new_zeros(self._length - len(row), row.shape[1])])

    def missing(self, prompts: Sequence[str]) -> list[str]:
        """Return those of the prompts that are not there."""
        return [prompt for prompt in prompts if _key(prompt) not in self._rows]


def _key(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()
