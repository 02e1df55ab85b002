"""Mask encodings, one file each (see `formats/packed/encoding.py`)."""
