"""What the runtime, not a graph, does with the pages of the KV cache where they lie on a device."""
