"""Networks: restored from checkpoints, evaluated, and their prunable layers."""
