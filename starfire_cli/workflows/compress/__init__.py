"""`starfire compress`."""
