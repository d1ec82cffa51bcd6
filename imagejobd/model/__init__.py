"""The types and rules of image jobs. Pure values; nothing here does I/O."""
