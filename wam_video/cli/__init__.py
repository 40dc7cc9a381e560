"""Command line: parse, call, print. One module per command; nothing here is imported by the rest of the package."""

import logging
import warnings

# Where torchao is installed, diffusers imports it and is told at length what it has for other machines; a command imports this first.
for _name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
    logging.getLogger(_name).setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*_stable_hash_for_caching")  # of torchao's weights, when they are compiled
