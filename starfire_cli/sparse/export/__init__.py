"""Ahead-of-time machine code of sparse networks, for this and other processors (docs/export.md)."""
