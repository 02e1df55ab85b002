"""Displays: tables, progress bars, figures and pages, one module a command."""
