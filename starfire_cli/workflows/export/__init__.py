"""`starfire export`."""
