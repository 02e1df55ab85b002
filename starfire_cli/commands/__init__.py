"""Commands: one module each, with one function of the same name, by which `cli.py` finds it."""
