"""Workflows: the work of each command, in a folder each, without console output."""
