"""Prompts: from what people have to clean shards, and from the shards into training."""
