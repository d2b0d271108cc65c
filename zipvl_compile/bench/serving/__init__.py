"""Load on a running server: what is asked and when, and how quickly the answers come."""
