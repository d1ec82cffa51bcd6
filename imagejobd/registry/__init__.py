"""Adapter to image registries (OCI distribution spec): the only user of an HTTP client towards them.

What the build kind needs is here: proof that a pushed tag points at the pushed digest. Nothing here writes to a
registry, and nothing here knows of jobs.
"""
