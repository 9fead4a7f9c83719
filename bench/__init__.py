"""Benchmarks and checks, each run by one command, each against a named peer or limit; what they found lies in ``bench/results``."""
