"""What is stored: the result schema, run folders, packed runs. May import core only."""
