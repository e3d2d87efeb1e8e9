"""How long users of a server wait: methods under the load that MLPerf LoadGen makes. May import the studies' shared parts."""
