"""Structured pruning of an encoder: masks over its units, passes under masks, compaction into smaller layers."""
