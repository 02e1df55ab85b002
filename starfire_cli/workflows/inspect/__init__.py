"""`starfire inspect`."""
