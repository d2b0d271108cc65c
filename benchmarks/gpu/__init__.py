"""What only a GPU can show: correctness of the kernels, their speed, TTFT and decode throughput; docs/gpu.md."""
