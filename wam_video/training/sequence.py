"""Long sequences: the processes of a run in groups that share the tokens of the same samples."""

import torch.distributed as dist

from wam_video.errors import ConfigError
from wam_video.models.sequence_parallel import SequenceGroup
from wam_video.models.transformer import WAMTransformer
from wam_video.training.config import TrainConfig


def share(config: TrainConfig, network: object) -> None:
    """Divide the tokens over neighbouring processes, `sequence_parallel` of them; every process calls it.

    Losses and counts are added up over all processes, so that each sample counts as often as it has processes in both,
    and gradients, which are added up too, come out whole.

    Raises:
        ConfigError: The run has something that needs a sample's tokens in one place.
    """
    size = config.sequence_parallel
    if size == 1:
        return
    if not isinstance(network, WAMTransformer) or config.teacher.kind != "none":
        other = f"network={config.network}" if config.network != "wam" else f"teacher.kind={config.teacher.kind}"
        raise ConfigError(f"sequence_parallel is {size}, which does not go with {other}; leave one of the two out")
    group, _ = dist.new_subgroups(group_size=size)
    if not isinstance(group, dist.ProcessGroup):
        raise RuntimeError("this process is in no group")
    network.share_sequences(SequenceGroup(group))
