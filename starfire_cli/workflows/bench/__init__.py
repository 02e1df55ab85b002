"""`starfire bench`."""
