"""`starfire plot`."""
