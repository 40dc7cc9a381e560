"""Other people's WebDatasets: tars of clips with captions or actions, and those of vla_foundry."""

from data_pipelines.webdataset.source import WebDatasetSource

__all__ = ["WebDatasetSource"]
