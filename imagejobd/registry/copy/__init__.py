"""Copying images: one read of the source for any number of targets. Plan and ask → stream → commit, the tag last."""
