"""Engine builders: one module per backend behind a registry."""
