"""Export of trained detectors: a folder of safetensors, a program of torch.export, an ONNX file."""
