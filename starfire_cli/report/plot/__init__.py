"""Figures, tables and pages of `starfire plot`."""
