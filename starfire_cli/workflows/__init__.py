"""The work behind the commands, a folder a command; it yields the records that report/ shows."""
