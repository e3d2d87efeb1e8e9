"""How long users of a server wait: methods under the load that MLPerf LoadGen makes; it imports the studies' shared parts."""
