"""What every kind of job that builds shares: contexts taken in, images built under a job's own name, pushed, purged.

A built image lives in the engine under `imagejobd/<installation>/<uuid>:<attempt>`; a user's own tag is put on it only
while it is pushed. However a job ends, the engine holds nothing of it afterwards but the build cache.
"""
