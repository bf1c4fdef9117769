"""Prompts: from source files to clean shards, and from the shards to training."""
