"""Videos with a JSON file of actions beside each: IRASim, and the Bridge layout of Cosmos."""

from data_pipelines.irasim.source import IRASimSource

__all__ = ["IRASimSource"]
