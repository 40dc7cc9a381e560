"""What a training run needs, on paper: memory of each device, bytes exchanged in a step, and the time of a step.

Every number is a closed form of the parameter count and of a call's tokens (`models/flops.py`); the activation bytes are
counted from what autograd saves in a block. Left out: the codec, the text encoder, the allocator's waste, the
gradient's own temporaries, and the time of the optimizer on the host where it is offloaded to.

Shares follow Rajbhandari et al. 2020 (ZeRO), figure 1: bf16 weights and gradients, float32 master weights and Adam moments,
2 + 2 + 12 bytes a parameter, of which stage 1 shards the 12, stage 2 also the gradients, stage 3 all. DDP and FSDP2 hold 4 + 4 + 8.
"""

from dataclasses import asdict, dataclass
from typing import Any

from wam_video.errors import ConfigError, one_of
from wam_video.models.devices import GIGA, Device, Roofline, roofline
from wam_video.models.flops import EXPERT, Call, NetworkShape, forward_flops, towers

STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
OFFLOADS = ("none", "optimizer", "all")

_BUCKET = 200_000_000
"""Numbers in a bucket of DeepSpeed's reductions and gathers (launch/deepspeed/zero2.json)."""


@dataclass(frozen=True, kw_only=True)
class ShardingConfig:
    """How a run is spread over devices."""

    strategy: str = "ddp"
    """`ddp`, `zero1`, `zero2`, `zero3` (DeepSpeed) or `fsdp2`."""
    gpus: int = 1
    gpus_per_node: int = 8
    hybrid: bool = False
    """Shard within a node, copy across nodes (zero3, fsdp2)."""
    offload: str = "none"
    """To the host's memory: `none`; `optimizer`: master weights and moments; `all`: the sharded weights too."""
    network_gb_s: float = 50.0
    """Between nodes, of each device, each way; 50 is 400 Gb/s."""

    def __post_init__(self) -> None:
        for name, allowed in (("strategy", STRATEGIES), ("offload", OFFLOADS)):
            if getattr(self, name) not in allowed:
                raise ConfigError(one_of(name, getattr(self, name), allowed))
        for name in ("gpus", "gpus_per_node"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: 1 or more")
        if not self.network_gb_s > 0:
            raise ConfigError(f"network_gb_s is {self.network_gb_s}; allowed: above 0")
        if self.gpus > self.gpus_per_node and self.gpus % self.gpus_per_node:
            raise ConfigError(f"gpus is {self.gpus}; allowed: whole nodes of gpus_per_node={self.gpus_per_node}")
        if self.hybrid and not self.shards_weights:
            raise ConfigError(f"hybrid is set but strategy is {self.strategy!r}; allowed with: zero3, fsdp2")
        if self.offload == "optimizer" and self.strategy == "ddp":
            raise ConfigError("offload is 'optimizer' but strategy is 'ddp'; allowed with: zero1, zero2, zero3, fsdp2")
        if self.offload == "all" and not self.shards_weights:
            raise ConfigError(f"offload is 'all' but strategy is {self.strategy!r}; allowed with: zero3, fsdp2")

    @property
    def shards_weights(self) -> bool:
        """Whether no device holds all weights."""
        return self.strategy in ("zero3", "fsdp2")

    @property
    def bf16_weights(self) -> bool:
        """Whether the network itself is in bf16, beside float32 master weights; else autocast casts as it computes."""
        return self.strategy.startswith("zero")

    @property
    def ways(self) -> int:
        """Devices that share one copy of what is sharded."""
        return min(self.gpus, self.gpus_per_node) if self.hybrid else self.gpus

    @property
    def replicas(self) -> int:
        """Copies of what is sharded."""
        return self.gpus // self.ways


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes on one device."""

    weights: float
    gradients: float
    optimizer: float
    """Adam's moments, and master weights where the network is in bf16."""
    average: float
    """The moving average of the weights (float32); every rank holds all of it unless weights are sharded."""
    buffers: float
    """Casts of the weights, communication buckets, and gathered blocks."""
    activations: float
    """Saved for the backward pass of one micro-batch."""
    host: float = 0.0
    """Bytes of one device's share in the memory of its host; not part of `total`."""

    @property
    def total(self) -> float:
        """Bytes of the device's own memory."""
        parts = (self.weights, self.gradients, self.optimizer, self.average, self.buffers, self.activations)
        return sum(parts)


def state_memory(parameters: int, largest_block: int, sharding: ShardingConfig) -> TrainingMemory:
    """Return the bytes on a device for weights, gradients, optimizer, average and buffers.

    Args:
        parameters: Trained parameters.
        largest_block: Parameters that are gathered at once where weights are sharded.
        sharding: How they are spread.
    """
    stage = {"ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3, "fsdp2": 3}[sharding.strategy]
    one = parameters / sharding.ways
    low = 2 if sharding.bf16_weights else 4
    weights = low * (one if stage >= 3 else parameters)
    gradients = low * (one if stage >= 2 else parameters)
    optimizer = (16 - 2 * low) * (one if stage >= 1 else parameters)
    average = 4 * (one if stage >= 3 else parameters)
    if stage == 0:
        # autocast keeps its bf16 copies to the end of the forward pass; DDP holds gradients a second time in its buckets
        buffers = 2 * parameters + (4 * parameters if sharding.gpus > 1 else 0)
    elif stage < 3:
        buffers = 2 * 2 * min(_BUCKET, parameters)  # one bucket reduced while the next one fills, in bf16
    else:
        buffers = 2 * 2 * largest_block + (4 if sharding.strategy == "fsdp2" else 2) * largest_block
    host = 0.0
    if sharding.offload != "none":
        host, optimizer = host + optimizer, 0.0
    if sharding.offload == "all":
        host, weights = host + weights, 0.0
    return TrainingMemory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        average=average,
        buffers=buffers,
        activations=0.0,
        host=host,
    )


def block_activations(shape: NetworkShape, call: Call, *, bf16_weights: bool) -> int:
    """Return the bytes that autograd saves in one block for one sample, with fused attention, casts of weights apart.

    Under autocast the residual stream is float32; with bf16 weights it is bf16, and so are four more tokens-by-width saves.
    """
    saved = 0
    for tower, tokens, _ in towers(shape, call):
        outside = (34 if bf16_weights else 50) - (0 if tower.reads else 6)
        inside, each = (36, 8 * shape.heads + 36) if tower.reads else (24, 4 * shape.heads + 24)
        saved += tokens * (outside * tower.dim + inside * shape.dim + 4 * tower.ffn_dim + each)
        saved += call.context * (12 * shape.dim + 4) if tower.reads else 0
    if shape.blind:  # keys and values of video once more, beside those of the others
        saved += call.video * 4 * shape.dim
    elif shape.gated:  # the outputs of video's second attention, and keys and values of both streams side by side
        saved += call.video * 4 * (shape.dim + shape.heads) + call.queries * 4 * shape.dim + 2 * shape.heads
    return saved


def activation_bytes(
    shape: NetworkShape, call: Call, *, batch_size: int, bf16_weights: bool, checkpointing: bool
) -> int:
    """Return the bytes saved for the backward pass of a micro-batch.

    With checkpointing each block keeps its input only, and one block at a time is computed again. Embeddings and read-out are
    rounded to 20 bytes a token and channel.
    """
    block = block_activations(shape, call, bf16_weights=bf16_weights)
    stream = sum(tokens * tower.dim for tower, tokens, _ in towers(shape, call))
    blocks = shape.layers * stream * (2 if bf16_weights else 4) + block if checkpointing else shape.layers * block
    return batch_size * (blocks + 20 * stream)


def training_flops(shape: NetworkShape, call: Call, *, checkpointing: bool = False) -> int:
    """Return the operations of one training sample: forward, and backward at twice that.

    With `checkpointing` the second forward of the blocks is counted too: what the device does, not what the update needs.
    """
    forward = forward_flops(shape, call)
    return 3 * forward.total + (forward.total - forward.ends if checkpointing else 0)


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes that one device sends (and receives) in an optimizer step, by the link that limits."""

    node: float
    """Between devices of a node, or all of it where nodes take part in one ring."""
    network: float
    """Between nodes."""
    host: float
    """Between a device and its host."""


def step_traffic(parameters: int, sharding: ShardingConfig, *, grad_accum: int = 1) -> Traffic:
    """Return the bytes exchanged in a step by ring collectives: (n - 1) / n of the tensor for a gather or a reduce-scatter.

    DDP reduces float32 gradients (two passes); ZeRO 1 and 2 reduce-scatter bf16 gradients and gather bf16 weights; ZeRO 3 and
    FSDP2 gather the weights for forward and for backward in every micro-batch. FSDP2 reduces in float32. ZeRO 2 reduces at every
    micro-batch, for it keeps no whole gradient. Copies of shards across nodes are reduced once a step.
    """
    ring = (sharding.ways - 1) / sharding.ways
    grad = 2 if sharding.bf16_weights else 4
    volume = {
        "ddp": 2 * grad,
        "zero1": grad + 2,
        "zero2": grad * grad_accum + 2,
        "zero3": (2 * 2 + grad) * grad_accum,
        "fsdp2": (2 * 2 + grad) * grad_accum,
    }[sharding.strategy]
    sent = volume * parameters * ring
    across = 2 * grad * (parameters / sharding.ways) * (sharding.replicas - 1) / sharding.replicas
    one_ring_over_nodes = sharding.ways > sharding.gpus_per_node
    host = 0.0
    if sharding.offload != "none":
        host = (grad + (0 if sharding.offload == "all" else 2)) * parameters / sharding.ways
    if sharding.offload == "all":
        host += 2 * 2 * grad_accum * parameters / sharding.ways
    return Traffic(
        node=0.0 if one_ring_over_nodes else sent, network=across + (sent if one_ring_over_nodes else 0.0), host=host
    )


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """A training run on paper; bytes are of one device, seconds of one optimizer step."""

    batch_size: int
    global_batch_size: int
    sample_flops: int
    """Forward and backward, recomputation not counted."""
    checkpointing: bool
    memory: TrainingMemory
    activations_plain: int
    """Saved without checkpointing, whatever the run does."""
    activations_checkpointed: int
    traffic: Traffic
    time: Roofline
    peak_flops: float

    @property
    def samples_per_second(self) -> float:
        """Of all devices, where computing and exchanging overlap perfectly."""
        return self.global_batch_size / self.time.seconds

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-able numbers."""
        result = asdict(self)
        result["memory"]["total"] = self.memory.total
        result["time"] |= {"step_s": self.time.seconds, "step_serial_s": self.time.serial_s, "bound": self.time.bound}
        return result | {"samples_per_second": self.samples_per_second}


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """What a device does in one step."""

    batch_size: int = 1
    """Samples in a micro-batch."""
    grad_accum: int = 1
    checkpointing: bool = False
    efficiency: float = 0.4
    """Assumed share of the arithmetic peak."""


def plan_training(
    shape: NetworkShape,
    call: Call,
    parameters: dict[str, int],
    sharding: ShardingConfig,
    step: StepConfig,
    device: Device,
) -> TrainingPlan:
    """Plan a run: `parameters` by part (`models.flops.count_parameters`), all of them trained."""
    total = sum(parameters.values())
    block = (shape.block_weights + 12 * shape.dim) if shape.layers else total
    if sharding.strategy == "fsdp2":  # the expert is no part of the blocks that are wrapped: its weights stay gathered
        block += parameters.get(EXPERT, 0)
    state = state_memory(total, block, sharding)
    low = sharding.bf16_weights
    plain, checkpointed = (
        activation_bytes(shape, call, batch_size=step.batch_size, bf16_weights=low, checkpointing=on)
        for on in (False, True)
    )
    activations = checkpointed if step.checkpointing else plain
    memory = TrainingMemory(**{**vars(state), "activations": float(activations)})
    traffic = step_traffic(total, sharding, grad_accum=step.grad_accum)
    samples = step.batch_size * step.grad_accum
    passes = 4 if step.checkpointing else 3
    moved = step.grad_accum * (passes * 2 * total + 2 * activations)
    moved += 2 * (memory.weights + memory.gradients + memory.optimizer + memory.average)
    work = training_flops(shape, call, checkpointing=step.checkpointing) * samples
    local = roofline(device, flops=work, moved=moved, efficiency=step.efficiency)
    links = (
        (traffic.node, device.link_gb_s),
        (traffic.network, sharding.network_gb_s),
        (traffic.host, device.host_gb_s),
    )
    return TrainingPlan(
        batch_size=step.batch_size,
        global_batch_size=samples * sharding.gpus,
        sample_flops=training_flops(shape, call),
        checkpointing=step.checkpointing,
        memory=memory,
        activations_plain=plain,
        activations_checkpointed=checkpointed,
        traffic=traffic,
        time=Roofline(
            compute_s=local.compute_s,
            memory_s=local.memory_s,
            communication_s=sum(sent / (speed * GIGA) for sent, speed in links),
        ),
        peak_flops=device.flops("bf16"),
    )
