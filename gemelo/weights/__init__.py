"""Files: tensors and facts in and out of GGUF and safetensors, under one set of names."""
