"""The packed format (docs/formats.md)."""
