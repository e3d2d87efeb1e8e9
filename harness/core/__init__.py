"""What every room uses: token sets, errors, files, the clock, counted work, settings. Imports no other room."""
