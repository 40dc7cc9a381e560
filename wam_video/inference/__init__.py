"""Using a checkpoint: the pipeline, what goes into it and what comes out. Training is never imported here."""
