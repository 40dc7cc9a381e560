"""The configuration of a training run: the components' own configs, run settings, and checks across them."""

from dataclasses import dataclass, field
from typing import Any

from wam_video.data.loader import DataConfig
from wam_video.errors import ConfigError, one_of
from wam_video.flow.density import DensityConfig
from wam_video.flow.loss import LossConfig
from wam_video.flow.scheduler import WAMScheduler
from wam_video.models.teacher import TeacherConfig
from wam_video.training.arguments import NETWORKS, check_arguments, check_model_arguments, check_policy_run
from wam_video.training.health_config import HealthConfig

TRACKERS = ("tensorboard", "wandb", "trackio")

FREE_ON_RESUME = (
    *("async_save", "max_failed_saves", "save_timeout_s"),
    *("steps", "max_minutes", "save_every", "keep_last", "eval_every", "eval_windows", "log_every", "trackers"),
    *(
        "output_dir",
        "num_processes",
        "engine",
        "sequence_parallel",
        "gradient_checkpointing",
        "export_on_save",
        "scheduler",
    ),
    *("fsdp", "compile"),
    "adapter.export",
    *("health.straggler_ratio", "health.straggler_intervals", "health.hang_seconds", "health.collective_timeout_s"),
    *("health.grace_seconds", "health.peak_tflops"),
    *("data.num_workers", "data.cache_mb", "data.prefetch", "data.store", "data.max_bad_share"),
)
"""Keys that may differ between a run and its continuation: none of them changes a sample, a loss or an update rule."""


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """The video codec."""

    kind: str = "pixel"
    """`pixel`: invertible patches, no weights; `wan`: diffusers' AutoencoderKLWan."""
    patch_size: int = 8
    """Of the pixel codec, in pixels."""
    mean: float = 0.0
    """Of the pixels in [-1, 1] (pixel codec)."""
    std: float = 0.5
    path: str | None = None
    """Folder or hub id of the VAE (wan codec)."""
    subfolder: str = ""
    """Of `path`, where the VAE is: `vae` in a diffusers repository."""
    latent_channels: int | None = None
    """Of the VAE, so that a dry run needs no download; None: read from its config."""

    def __post_init__(self) -> None:
        if self.kind not in ("pixel", "wan"):
            raise ConfigError(one_of("codec.kind", self.kind, ("pixel", "wan")))
        if self.kind == "wan" and not self.path:
            raise ConfigError("codec.path is not set; the wan codec needs a folder or hub id of an AutoencoderKLWan")
        if not 0 < self.std < float("inf"):
            raise ConfigError(f"codec.std is {self.std}; allowed: above 0, finite")
        if self.patch_size < 1:
            raise ConfigError(f"codec.patch_size is {self.patch_size}; allowed: 1 or more (pixels)")


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The text encoder."""

    kind: str = "byte_t5"
    """`byte_t5`: a small byte-level T5 that needs no download; `pretrained`: any T5 encoder of transformers."""
    path: str | None = None
    """Folder or hub id (pretrained)."""
    subfolder: str = ""
    """Of `path`, where the encoder is: `text_encoder` in a diffusers repository."""
    tokenizer_subfolder: str = ""
    channels: int | None = None
    """Of the embeddings (pretrained), so that a dry run needs no download; None: read from the encoder's config."""
    d_model: int = 64
    num_layers: int = 2
    num_heads: int = 4
    max_length: int = 64
    """Longest prompt in tokens (bytes for byte_t5); longer ones are cut."""
    train: bool = False
    """Train the encoder along; else its embeddings are cached by prompt."""
    prompt_dropout: float = 0.1
    """Share of samples that see the empty prompt, which guidance needs."""

    def __post_init__(self) -> None:
        if self.kind not in ("byte_t5", "pretrained"):
            raise ConfigError(one_of("text.kind", self.kind, ("byte_t5", "pretrained")))
        if self.kind == "pretrained" and not self.path:
            raise ConfigError("text.path is not set; text.kind=pretrained needs a folder or hub id of a T5 encoder")
        if not 0 <= self.prompt_dropout <= 1:
            raise ConfigError(f"text.prompt_dropout is {self.prompt_dropout}; allowed: 0 to 1")


@dataclass(frozen=True, kw_only=True)
class ImageEncoderConfig:
    """The frozen encoder of the first frame, for networks with an image context (`image_dim`, as Wan2.1 I2V has)."""

    kind: str = "none"
    """`none`, or `clip`: transformers' CLIPVisionModel."""
    path: str | None = None
    """Folder or hub id (clip)."""
    subfolder: str = ""
    """Of `path`, where the encoder is: `image_encoder` in a diffusers repository."""
    fit: str = "crop"
    """How the frame becomes a square: `crop`, the middle of it, as diffusers does; `stretch`, all of it, as Wan's own code and
    DreamZero do."""

    def __post_init__(self) -> None:
        for name, choices in (("kind", ("none", "clip")), ("fit", ("crop", "stretch"))):
            if getattr(self, name) not in choices:
                raise ConfigError(one_of(f"image_encoder.{name}", getattr(self, name), choices))
        if self.kind == "clip" and not self.path:
            raise ConfigError(
                "image_encoder.path is not set; image_encoder.kind=clip needs a folder or hub id of a CLIP vision model"
            )


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its schedule. Norms, biases, learned tokens and embodiment tables have no weight decay."""

    name: str = "adamw"
    """`adamw`, or `muon`: Muon for the matrices of the blocks and AdamW for the rest (`muon.MuonAdamW`); not with DeepSpeed."""
    lr: float = 3e-4
    muon_lr_scale: float = 3.0
    """Learning rate of Muon's matrices as a multiple of `lr`; its updates are scaled to the size of AdamW's."""
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    warmup_steps: int = 100
    schedule: str = "cosine"
    """After the warm-up: `constant`, `cosine` to the last step, or `wsd` (constant, then linear down at the end)."""
    decay_share: float = 0.2
    """Share of the steps over which `wsd` comes down."""
    min_lr_ratio: float = 0.1
    """Learning rate at the last step as a share of `lr`."""
    decays: dict[str, float] = field(default_factory=dict)
    """Weight decay by part or pattern, as in `groups`, in place of `weight_decay`; later ones win."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""
    groups: dict[str, float] = field(default_factory=dict)
    """Learning rates as multiples of `lr`, 0 freezes: by part (`models.parts.PARTS`: trunk, expert, embodiment, conditioning,
    text, lora) or by pattern of parameter names (`blocks.0.*`). Patterns win over parts, later patterns over earlier ones."""

    def __post_init__(self) -> None:
        for name, choices in (("name", ("adamw", "muon")), ("schedule", ("constant", "cosine", "wsd"))):
            if getattr(self, name) not in choices:
                raise ConfigError(one_of(f"optim.{name}", getattr(self, name), choices))
        for name in ("lr", "muon_lr_scale", "weight_decay", "eps", "warmup_steps", "clip_norm"):
            value, positive = getattr(self, name), name.startswith(("lr", "muon", "eps"))
            if not 0 <= value < float("inf") or (positive and value == 0):
                raise ConfigError(f"optim.{name} is {value}; allowed: {'above 0' if positive else '0 or more'}, finite")
        _check_betas(self.betas)
        for name in ("decay_share", "min_lr_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"optim.{name} is {getattr(self, name)}; allowed: 0 to 1")
        for what, meaning in (("groups", "0 (frozen) or more, as a multiple of optim.lr"), ("decays", "0 or more")):
            for key, value in getattr(self, what).items():
                if not 0 <= value < float("inf"):
                    raise ConfigError(f"optim.{what}.{key} is {value}; allowed: {meaning}")


def _check_betas(betas: tuple[float, float]) -> None:
    if not all(0 <= beta < 1 for beta in betas):
        raise ConfigError(f"optim.betas is {list(betas)}; allowed: two numbers from 0 to below 1")


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Train a low-rank adapter (Hu et al. 2021) of the network that the run starts from, and leave that as it is."""

    kind: str = "none"
    """`none`: train the network itself; `lora`."""
    rank: int = 16
    alpha: float | None = None
    """The adapter counts alpha / rank times; None: as `rank`, which is once."""
    dropout: float = 0.0
    """Of the adapter's inputs."""
    target_modules: list[str] = field(
        default_factory=lambda: ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
    )
    """Ends of the names of the linear layers that are adapted."""
    init: str = "kaiming"
    """Of the first matrix, `kaiming` or `gaussian`; the second one is zero."""
    full: list[str] = field(default_factory=lambda: ["embodiment"])
    """Parts or patterns, as in `optim.groups`, that are trained whole along with it and saved with it."""
    export: str = "merged"
    """`merged`: a checkpoint folder with the adapter added to the weights; `adapter`: the adapter alone, in `adapter/`, for use
    with the checkpoint of `init_from`."""

    def __post_init__(self) -> None:
        for name, allowed in (
            ("kind", ("none", "lora")),
            ("init", ("kaiming", "gaussian")),
            ("export", ("merged", "adapter")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(one_of(f"adapter.{name}", getattr(self, name), allowed))
        if self.rank < 1:
            raise ConfigError(f"adapter.rank is {self.rank}; allowed: 1 or more")
        if self.alpha is not None and not self.alpha > 0:
            raise ConfigError(f"adapter.alpha is {self.alpha}; allowed: above 0, or null for the rank")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"adapter.dropout is {self.dropout}; allowed: 0 to below 1")
        if not self.target_modules:
            raise ConfigError("adapter.target_modules is empty; name at least one linear layer, e.g. to_q")


@dataclass(frozen=True, kw_only=True)
class EMAConfig:
    """The moving average of the weights, which is what is validated and exported."""

    decay: float = 0.999
    """0 follows the weights exactly."""
    warmup: bool = True
    """Average over at most the first tenth of what has been seen: decay at most (1 + step) / (10 + step)."""
    power: float = 0.0
    """Above 0, a warm-up of another shape: decay at most 1 - step^-power (Diffusion Policy has 0.75)."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ConfigError(f"ema.decay is {self.decay}; allowed: 0 to below 1")
        if not self.power >= 0:
            raise ConfigError(f"ema.power is {self.power}; allowed: 0 (none) or more")


@dataclass(frozen=True, kw_only=True)
class FSDPConfig:
    """How the fsdp engine cuts the weights up."""

    shard_size: int = 0
    """Processes that share one copy of the weights; several such groups have copies of each other (hybrid sharding), so that
    weights are gathered inside a machine and only gradients cross. 0: all processes are one group."""
    cpu_offload: bool = False
    """Keep weights, gradients and optimizer state on the CPU, and update there; a block's weights come while it computes."""
    reshard_after_forward: bool = True
    """Drop a block's gathered weights until its backward pass; false is faster and takes the memory of all of them."""

    def __post_init__(self) -> None:
        if self.shard_size < 0:
            raise ConfigError(f"fsdp.shard_size is {self.shard_size}; allowed: 0 (all processes) or more")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that a run is made of; `configs/train/*.yaml` hold the differences."""

    output_dir: str = "runs/train"
    seed: int = 0
    steps: int = 1000
    """Optimizer steps in all, over all the times that the run is started."""
    max_minutes: float | None = None
    """Stop cleanly after so long in this process, whatever the step; None: never."""
    batch_size: int = 16
    """Windows in a micro-batch of one process; a step sees batch_size * grad_accum * processes."""
    grad_accum: int = 1
    network: str = "wam"
    """`wam`: ours; `diffusion_policy`: the baseline (`models.diffusion_policy`), which makes actions only."""
    model: dict[str, Any] = field(default_factory=dict)
    """Arguments of the network (`WAMTransformer` for `wam`), but for those that follow from data, codec and text encoder."""
    codec: CodecConfig = field(default_factory=CodecConfig)
    text: TextConfig = field(default_factory=TextConfig)
    image_encoder: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    data: DataConfig = field(default_factory=DataConfig)
    normalization: str = "quantile"
    """Of actions and state: quantile, mean_std or min_max."""
    density: DensityConfig = field(default_factory=DensityConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    backbone: str | None = None
    """Folder or hub id, in diffusers' format, of the Wan network that the run starts from; its shape need not be set again."""
    init_from: str | None = None
    """Checkpoint folder whose weights the run starts from; layers of embodiments that it does not know start fresh."""
    scheduler: dict[str, Any] = field(default_factory=dict)
    """Arguments of `WAMScheduler`: how the exported model samples unless asked otherwise."""
    mixed_precision: str = "auto"
    """`bf16`, `no`, or `auto`: bf16 where the device has it."""
    gradient_checkpointing: str = "none"
    """What of a block is computed again in the backward pass instead of kept: `none`; `full` (or true): all of it, for the
    least memory and a third more work; `selective`: all but matrix products and attention, nearly for free."""
    compile: bool = False
    """Compile every block with torch.compile, each by itself as one graph; the first step of each geometry takes its time."""
    engine: str = "auto"
    """What must carry the run: `single`, `ddp`, `deepspeed`, `fsdp`, or `auto`: whatever it was launched with."""
    fsdp: FSDPConfig = field(default_factory=FSDPConfig)
    num_processes: int | None = None
    """How many processes there must be; None: whatever it was launched with."""
    sequence_parallel: int = 1
    """Neighbouring processes that share the tokens of the same samples, for sequences too long for one (`models.sequence_parallel`)."""
    save_every: int = 500
    """Steps between checkpoints; there is always one at the end."""
    keep_last: int = 2
    """Checkpoints kept; 0 keeps all."""
    async_save: bool = False
    """Write checkpoints while training goes on, from copies in the CPU's memory; a save that is due before the last one is
    written waits for it."""
    max_failed_saves: int = 3
    """So many saves in a row may fail, for a full disk say, before the run ends; each one is told, and training goes on."""
    save_timeout_s: float = 1800.0
    """A save fails where a process has not written its files after so long, in seconds."""
    export_on_save: bool = False
    """Export the model at every checkpoint, not only at the end."""
    eval_every: int = 500
    """Steps between validations; 0: never."""
    eval_windows: int = 128
    """Held-out windows in a validation."""
    log_every: int = 20
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Beside the plain lines and metrics.jsonl: tensorboard, wandb, trackio."""
    max_bad_steps: int = 5
    """So many steps in a row with a non-finite loss or gradient are skipped before the run gives up."""
    health: HealthConfig = field(default_factory=HealthConfig)

    def __post_init__(self) -> None:
        plain = str(self.gradient_checkpointing).lower()  # it was a boolean once
        object.__setattr__(self, "gradient_checkpointing", {"true": "full", "false": "none"}.get(plain, plain))
        for name in (
            "steps",
            "batch_size",
            "grad_accum",
            "sequence_parallel",
            "save_every",
            "log_every",
            "max_bad_steps",
            "max_failed_saves",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: 1 or more")
        for name in ("keep_last", "eval_every", "eval_windows", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: 0 or more")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ConfigError(f"max_minutes is {self.max_minutes}; allowed: above 0, or null for no limit")
        for name, allowed in (
            ("network", tuple(NETWORKS)),
            ("normalization", ("quantile", "mean_std", "min_max")),
            ("mixed_precision", ("auto", "no", "bf16")),
            ("engine", ("auto", "single", "ddp", "deepspeed", "fsdp")),
            ("gradient_checkpointing", ("none", "full", "selective")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(one_of(name, getattr(self, name), allowed))
        for tracker in self.trackers:
            if tracker not in TRACKERS:
                raise ConfigError(one_of("trackers entry", tracker, TRACKERS))
        check_model_arguments(self.network, self.model)
        check_arguments("scheduler", WAMScheduler, self.scheduler)
        WAMScheduler(**self.scheduler)
        self._check_across()

    def _check_across(self) -> None:
        if self.compile and self.gradient_checkpointing == "selective":
            raise ConfigError(
                "gradient_checkpointing is 'selective' and compile is true, whose compiler chooses by itself what to keep; "
                "set gradient_checkpointing to none or full"
            )
        if not self.save_timeout_s > 0:
            raise ConfigError(f"save_timeout_s is {self.save_timeout_s}; allowed: above 0 (seconds)")
        if self.network == "diffusion_policy":
            check_policy_run(self)
        if self.optim.schedule != "constant" and self.optim.warmup_steps >= self.steps:
            raise ConfigError(
                f"optim.warmup_steps is {self.optim.warmup_steps}; allowed: fewer than steps ({self.steps})"
            )
        if self.image_encoder.kind == "none" and self.model.get("image_dim"):
            raise ConfigError(
                f"model.image_dim is {self.model['image_dim']}, but image_encoder.kind is 'none'; set image_encoder.kind=clip and "
                "its path, or leave image_dim out"
            )
        if self.adapter.kind == "none":
            return
        if self.init_from is None and self.backbone is None:
            raise ConfigError("adapter.kind is 'lora', but there is nothing to adapt; set init_from or backbone")
        if self.adapter.export == "adapter" and (self.init_from is None or self.text.train):
            what = "init_from is not set" if self.init_from is None else "text.train is set"
            raise ConfigError(
                f"adapter.export is 'adapter', but {what}: an adapter goes with a checkpoint folder whose other parts are "
                "as they were; change that, or set adapter.export=merged"
            )
