"""Distillations that come again: when each is due, one at a time, with a history."""
