"""What the lines in docstrings load, which a person copies: torch and transformers alone."""

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file


def load_by_lines(folder: Path, *modules: Any, task: str = "SequenceClassification") -> Any:
    """The model that the indented lines of these modules' docstrings make of a checkpoint.

    task: as transformers' classes end, where it is no classifier of texts.
    """
    auto = f"AutoModelFor{task}"
    names: dict[str, Any] = {
        "AutoConfig": transformers.AutoConfig,
        auto: getattr(transformers, auto),
        "folder": str(folder),
        "load_file": load_file,
        "torch": torch,
        "transformers": transformers,
    }
    for module in modules:
        text = (module.__doc__ or "").splitlines()
        lines = [line[4:] for line in text if line.startswith("    ") or not line]
        code = "\n".join(lines).replace("AutoModelForSequenceClassification", auto)
        exec(code, names)
    return names["model"].eval()
