"""Dead channels: detection, folding and removal."""
