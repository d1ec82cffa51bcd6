"""imagejobd: image jobs on a build host, accepted over HTTP, kept in SQLite, carried out to the end."""

__version__ = "0.1.0"
