"""Benchmarks of DNA."""
