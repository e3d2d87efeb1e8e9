"""How a model runs over many samples: order, batches, engines, exit rules. May import encoder, contracts and all below."""
