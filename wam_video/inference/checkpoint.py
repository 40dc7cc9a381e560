"""A pipeline and its folder: loading it whole, saving it with hashes of its weights, putting an adapter into it."""

import inspect
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Self

from diffusers import AutoencoderKLWan, DiffusionPipeline
from transformers import BaseImageProcessor, CLIPVisionModel, PreTrainedModel

from wam_video.errors import CheckpointError, ConfigError, WamError, first_line
from wam_video.inference import loading
from wam_video.inference.checks import check_components
from wam_video.models import adapters
from wam_video.models.transformer import WAMTransformer
from wam_video.models.video_codec import PixelCodec

HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
"""What `from_pretrained` passes on to the Hub."""


class CheckpointFolder(DiffusionPipeline):
    """What the pipelines do with files."""

    transformer: WAMTransformer
    vae: PixelCodec | AutoencoderKLWan
    text_encoder: PreTrainedModel | None
    image_encoder: CLIPVisionModel | None
    image_processor: BaseImageProcessor | None

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str], *, verify: bool = True, **kwargs: Any
    ) -> Self:
        """Load a checkpoint folder, or a Hub repository, which is fetched as a folder first.

        Args:
            pretrained_model_name_or_path: Folder or Hub id.
            verify: Read the weights once more and compare them with the hashes that were exported with them; some seconds
                for ten gigabytes.
            kwargs: diffusers' own: `torch_dtype`, components to use instead of the saved ones, `revision`, `token`, ...

        Raises:
            CheckpointError: A file is missing or altered, or the parts do not fit each other.
        """
        hub = {name: kwargs.pop(name) for name in HUB_OPTIONS if name in kwargs}
        folder = loading.resolve(fspath(pretrained_model_name_or_path), **hub)
        passed = frozenset(kwargs) & frozenset(loading.CONFIG_FILES)
        loading.check_folder(folder, cls.__name__, passed, tuple(inspect.signature(cls.__init__).parameters))
        if verify:
            loading.verify_weights(folder, passed)
        try:
            pipeline = super().from_pretrained(str(folder), **kwargs)
        except CheckpointError:
            raise
        except WamError as error:  # a setting that no part of ours would have saved
            raise CheckpointError(f"checkpoint {folder} was altered: {error}") from error
        except Exception as error:  # whatever diffusers and transformers raise at a broken file
            where = loading.culprit(folder, str(error))
            raise CheckpointError(f"checkpoint {where} can't be loaded: {first_line(error)}") from error
        for name in set(loading.WITH_WEIGHTS) - passed:
            if (module := getattr(pipeline, name, None)) is not None:
                loading.check_weights(folder, name, module)
        return pipeline

    def load_adapter(
        self, pretrained_model_name_or_path: str | PathLike[str], *, merge: bool = False, **hub: Any
    ) -> None:
        """Put an adapter that training exported into this model, which must be the one that it was trained on.

        The adapter's embodiments and statistics take the place of the model's.

        Args:
            pretrained_model_name_or_path: Folder or Hub id of the adapter.
            merge: Add it to the weights, so that the model can be saved; else it stays beside them.
            hub: `revision`, `token`, ...

        Raises:
            CheckpointError: It is of another base, or a file is missing or altered.
        """
        folder = loading.resolve(fspath(pretrained_model_name_or_path), what="adapter", **hub)
        info = adapters.read_info(folder)
        adapters.check_base(self.transformer, folder, info)
        processor = loading.adapter_processor(folder)
        adapters.load_adapter(self.transformer, folder, info)
        transformer = adapters.merged(self.transformer) if merge else self.transformer
        check_components(transformer, self.vae, self.text_encoder, processor)
        self.register_modules(transformer=transformer, processor=processor)

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write a checkpoint folder; the arguments are diffusers' own.

        Raises:
            ConfigError: The model has an adapter beside its weights.
        """
        if adapters.has_adapter(self.transformer):
            raise ConfigError(
                "the model has an adapter beside its weights; load it with merge=True to save a checkpoint"
            )
        super().save_pretrained(save_directory, *args, **kwargs)

    def save_config(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Write the index and the hashes of the weights, as the last step of `save_pretrained`; arguments as in diffusers."""
        super().save_config(save_directory, *args, **kwargs)
        loading.write_checksums(Path(save_directory))
