"""Text encoders: UMT5 or any T5 encoder through transformers, and a small byte-level T5 that needs no download."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import ByT5Tokenizer, PreTrainedModel, PreTrainedTokenizerBase, T5Config, T5EncoderModel

BYTE_VOCABULARY = 384
"""ByT5's: 3 special tokens, 256 bytes, 125 spare ids."""


def build_byte_t5(
    *, d_model: int = 64, num_layers: int = 2, num_heads: int = 4, max_length: int = 64, seed: int = 0
) -> tuple[ByT5Tokenizer, T5EncoderModel]:
    """Build a byte-level T5 encoder with weights drawn from `seed`, and its tokenizer of at most `max_length` bytes.

    Random as it starts, it already tells prompts apart; train it along where the wording matters.
    """
    config = T5Config(
        vocab_size=BYTE_VOCABULARY,
        d_model=d_model,
        d_kv=d_model // num_heads,
        d_ff=2 * d_model,
        num_layers=num_layers,
        num_heads=num_heads,
        feed_forward_proj="gated-gelu",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = T5EncoderModel(config)
    return ByT5Tokenizer(model_max_length=max_length), encoder.eval()


def encode_text(
    tokenizer: PreTrainedTokenizerBase, encoder: PreTrainedModel, prompts: Sequence[str]
) -> Float[Tensor, "b s dt"]:
    """Encode prompts, padded to the tokenizer's maximum, with zeros past each prompt's end (Wan's convention).

    A prompt that is longer than the maximum is cut there.
    """
    tokens = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        add_special_tokens=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    mask = tokens.attention_mask.to(encoder.device)
    embeds = encoder(tokens.input_ids.to(encoder.device), attention_mask=mask).last_hidden_state
    return embeds * mask[..., None].to(embeds)
