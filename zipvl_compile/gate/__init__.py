"""Gates that keep figures from regressing: exact ones, times beside a base revision, times beside a pinned day."""
