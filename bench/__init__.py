"""Contain the benchmarks and checks.

One command runs each of them, against a named peer or limit. The results are in ``bench/results``.
"""
