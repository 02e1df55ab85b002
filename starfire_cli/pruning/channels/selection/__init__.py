"""Choice of the channels that a compression method removes from a trained network, and the repair of what is left."""
