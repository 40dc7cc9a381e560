"""Labels for video without actions: what happens between two frames as a few numbers, learned from video alone.

`networks` holds the models, `pairs` reads pairs of frames, `learn` trains, `files` keeps a model in a folder, `label` writes
shards in which the latents are the actions of one more embodiment.
"""
