"""From raw text to a backbone folder: vocabulary, packed shards, masked words, a training loop that resumes exactly."""
