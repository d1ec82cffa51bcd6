"""What the kinds of jobs share."""
