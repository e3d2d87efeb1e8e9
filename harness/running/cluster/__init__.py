"""A run on the nodes of a cluster: checks before it, what nodes do, the store, Ray. Nodes exchange JSON and files, no pickles."""
