"""One module a command, with one function of the same name; `cli.py` finds them by that name."""
