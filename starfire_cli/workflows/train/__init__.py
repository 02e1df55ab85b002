"""`starfire train`."""
