"""What a run does to the world: the code that Temporal retries."""
