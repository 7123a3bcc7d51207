"""Where data lasts: objects by key, in a folder or a bucket."""
