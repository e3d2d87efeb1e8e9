"""From results on disk to typed rows and findings; draws nothing."""
