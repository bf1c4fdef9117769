"""The command tree: `python -m jobs <command>`."""
