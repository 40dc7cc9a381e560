"""Recordings in, batches out: shards are written and verified, decoded, cut into windows, mixed and put in order.

A source yields `schema.Episode`s; `writer.ShardWriter` cuts and encodes them into WebDataset shards with a manifest and
statistics; `loader.WindowDataset` reads the shards back as a pure function of (configuration, seed, sample index).
`processor.WAMProcessor` carries what inference needs of all that into a checkpoint folder.
"""
