"""From a list of URLs, or your own files, to an evaluated language model: one command-line tool."""

__version__ = "0.1.0"
