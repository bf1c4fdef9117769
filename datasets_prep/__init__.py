"""Prompt preparation: pure batch functions over Arrow tables. No torch, no ray."""
