"""Pruning inside somebody else's training loop."""
