"""Exports a measured cell as a model that answers texts. May import all other rooms but the API and the command line."""
