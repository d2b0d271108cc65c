"""What a prefill and a decode step must cost on a GPU: operations and bytes of every op, calculated, never measured."""
