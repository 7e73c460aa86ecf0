"""ONNX, the service, and its container."""
