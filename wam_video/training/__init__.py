"""Training: configuration, the sample on the noise square, the loop, checkpoints, and everything about processes.

Knows nothing of inference: the exporter is handed in by `wam_video.cli.train`.
"""
