"""What runs where, and when: one scheduler for worker processes of this machine, a cluster and a simulated cluster."""
