"""What every GPU kernel of the method shares: its launch, compiled ahead of time, inside TensorRT."""
