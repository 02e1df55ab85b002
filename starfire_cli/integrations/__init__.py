"""Callbacks for other people's trainers, a module each, named like the package that it needs."""
