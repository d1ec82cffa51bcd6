"""What registries hold: manifests, blobs, tags and referrers, read and written by the distribution spec."""
