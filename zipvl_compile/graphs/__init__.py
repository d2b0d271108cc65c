"""Torch programs to ONNX graphs over one weights file."""
