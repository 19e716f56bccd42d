"""Samplers on a recorded table: every recipe of a small space was trained once, so that searches can be replayed.

python -m benchmarks.samplers          replays, and writes docs/samplers.svg and a table; trains nothing
python -m benchmarks.samplers record   trains the table anew, and writes benchmarks/samplers/digits.csv
"""
