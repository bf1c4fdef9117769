"""Evaluation of students: plan, workers, scorers, judges, summary and report."""
