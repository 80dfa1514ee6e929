"""What works where PyTorch is not installed: `pytest tests_without_torch`.

It is a folder beside tests/ because a conftest counts for all that lies below it, and that of
tests/ imports PyTorch. This one needs gemelo, the embedded model and pytest, no more; where PyTorch
is installed all the same, it cannot be imported from here.
"""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
ABSENT = ("torch", "torchvision", "transformers", "safetensors", "gguf", "PIL", "av")
for _name in ABSENT:
    sys.modules[_name] = None  # type: ignore[assignment]  # to import it is a ModuleNotFoundError
