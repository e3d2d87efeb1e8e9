"""The ground floor of the referee: token sets, errors, files, the clock, counted work. Imports nothing else of the project."""
