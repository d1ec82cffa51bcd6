"""imagejobd: image jobs on a build host, accepted over HTTP, kept in SQLite, carried out to the end."""

__version__ = "0.2.0"
# What `/version` calls the native API, and its paths begin with below `/api`.
API_VERSION = "v2"
