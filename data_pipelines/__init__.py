"""One package per kind of dataset: each parses a format and yields episodes; writing is `wam_video.data`'s."""
