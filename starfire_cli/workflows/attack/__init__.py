"""`starfire attack`."""
