"""The workflow of `starfire train`."""
