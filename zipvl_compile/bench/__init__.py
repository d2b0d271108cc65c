"""Benchmarks of a bundle or a server: what to measure (workloads), how (interleaved), and what came out (results)."""
