"""Networks only: layers, tokens, blocks, the transformer, codecs and text encoders. No noise, no loss, no distributed code."""
