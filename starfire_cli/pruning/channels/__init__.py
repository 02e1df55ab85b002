"""Dead channels: found, folded away and removed."""
