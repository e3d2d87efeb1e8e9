"""From a measured cell to a folder that answers texts. Imports all other rooms, but not the API and the command line."""
