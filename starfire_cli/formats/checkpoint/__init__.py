"""Checkpoints on disk, in the formats that people have."""
