"""Plain records that workflows yield and reports show, one module a command."""
