"""One file for each way of writing down a mask (see `formats/encoding.py`)."""
