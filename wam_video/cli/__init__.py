"""Command line: parse, call, print. One module per command; nothing here is imported by the rest of the package."""
