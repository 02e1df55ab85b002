"""Images: decoded, scaled and delivered as batches."""
