"""Adapter to image registries (OCI distribution spec): the only user of an HTTP client towards them.

From below: `http` exchanges one request, `hosts` says whom to trust and `auth` who we are, `connection` makes them into
one registry as a job speaks to it, `repository` and `blobs` know its content, `copy` brings images from one repository
to many. Nothing here knows of jobs.
"""
