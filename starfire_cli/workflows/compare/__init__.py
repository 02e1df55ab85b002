"""`starfire compare`."""
