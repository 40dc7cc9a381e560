"""How much of the device a run uses: the operations of its steps, over what the device could do."""

from dataclasses import replace

import torch
from torch import nn

from wam_video.models.devices import DEVICES, TERA
from wam_video.models.flops import NetworkShape, teacher_forced, whole
from wam_video.models.transformer import WAMTransformer
from wam_video.training.plan import training_flops
from wam_video.training.sample import TrainingSample


class StepWork:
    """Operations of training samples, forward and backward, by their shape (`models.flops`; recomputation is not counted).

    Only the network counts, not the codec, text encoder or teacher; and all of it as if trained, which overstates an adapter.
    For another network than ours nothing is counted.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network if isinstance(network, WAMTransformer) else None
        self._known: dict[tuple[int, ...], int] = {}

    def flops(self, sample: TrainingSample) -> float:
        """Return the operations of a micro-batch."""
        video, actions = sample.noisy.x_t.video, sample.noisy.x_t.actions
        if self._network is None or video is None:
            return 0.0
        b, v, _, t, h, w = video.shape
        text = 0 if sample.text_embeds is None else sample.text_embeds.shape[1]
        image = 0 if sample.image_embeds is None else sample.image_embeds.shape[1]
        key = (v, t, h, w, 0 if actions is None else actions.shape[1], sample.num_context, text, image)
        if key not in self._known:
            self._known[key] = self._count(key)
        return float(b * self._known[key])

    def _count(self, key: tuple[int, ...]) -> int:
        v, t, h, w, actions, context, text, image = key
        assert self._network is not None
        shape, rule = NetworkShape.of(self._network.config), self._network.attention
        layout = shape.layout(views=v, grid=(t, h, w), actions=actions)
        given = context // shape.patch_size[0]
        if not rule.causal or layout.frames == given:
            return training_flops(shape, whole(layout, text, image))
        chunks = (layout.frames - given) // rule.chunk_frames
        one = replace(layout, actions=actions // chunks)
        return training_flops(shape, teacher_forced(one, rule.chunk_frames, text, image, rule=rule, context=given))


def peak_flops(device: torch.device, peak_tflops: float | None) -> float | None:
    """Return the operations a second that the device could do: as configured, else of a GPU that is in the table."""
    if peak_tflops is not None:
        return peak_tflops * TERA
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device).lower().replace(" ", "")
    found = [key for key in sorted(DEVICES, key=len, reverse=True) if key != "cpu" and key in name]
    return DEVICES[found[0]].flops("bf16") if found else None


def peak_memory(device: torch.device) -> float:
    """Return the most bytes that this process has held so far: on its CUDA device, else in the host's memory."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
