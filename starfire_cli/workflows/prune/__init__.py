"""`starfire prune-mask`."""
