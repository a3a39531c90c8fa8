"""Checkpoint → verified ONNX bundle. Needs the extra `export`."""
