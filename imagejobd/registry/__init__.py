"""Adapter to image registries (OCI distribution spec): the only user of an HTTP client towards them.

From below: `http` exchanges one request, `login` says who we are, `connection` makes both into one registry as a job
speaks to it, `content` knows manifests and blobs, `copy` brings images from one repository to many. Nothing here knows
of jobs.
"""
