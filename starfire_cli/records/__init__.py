"""Plain values that workflows yield and reports show, named by command."""
