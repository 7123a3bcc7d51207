"""What a user writes, and what it is compiled to."""
