"""Recurring distillations: schedules, due times, leases, runs and history."""
