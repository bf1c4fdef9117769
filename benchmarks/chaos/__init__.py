"""Kills, outages and damage during a distillation: each must end where an undisturbed one ends.

make chaos                                     # an hour, every scenario in turn; results add up in runs/chaos.jsonl
python -m benchmarks.chaos --only driver --runs 3
python -m benchmarks.chaos --table             # of what there is
"""
