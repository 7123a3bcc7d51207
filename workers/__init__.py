"""Which worker serves which queue with what."""
