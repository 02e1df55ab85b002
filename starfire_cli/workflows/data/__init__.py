"""`starfire data`."""
