"""Images in tar shards, local and remote."""
