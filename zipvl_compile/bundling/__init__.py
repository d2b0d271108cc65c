"""recipe -> bundle: the steps, the atomic output, the cache."""
