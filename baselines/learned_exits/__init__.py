"""Early exits whose decision is trained: a policy, halting probabilities, a table of entropies. May import ``harness`` only."""
