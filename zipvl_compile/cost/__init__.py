"""What a prefill and a decode step must cost on a GPU or a CPU: operations and bytes of every op, calculated."""
