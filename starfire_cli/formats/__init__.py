"""Files on disk: checkpoints, packed checkpoints, run folders, attack results, pictures and shards."""
