"""Benchmarks that anyone can rerun: ratios measured side by side in one run."""
