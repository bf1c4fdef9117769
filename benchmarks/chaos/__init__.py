"""Fault injection: kills, outages and corruption during a distillation, whose result must match an undisturbed run's.

make chaos                                     # an hour; runs every scenario in turn and appends to runs/chaos.jsonl
python -m benchmarks.chaos --only driver --runs 3
python -m benchmarks.chaos --table             # print the recorded results
"""
