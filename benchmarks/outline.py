"""What a benchmark found, nested by name, as indented lines for people; JSON is for programs.

print("\n".join(lines({"whole": {"median": 0.031, "least": 0.03}})))
"""

from __future__ import annotations

from typing import Any


def lines(found: dict[str, Any], indent: str = "") -> list[str]:
    """One line for every figure or summary with a median; a line above for what they are of."""
    out = []
    for name, value in found.items():
        if isinstance(value, dict) and "median" in value:
            text = "  ".join(f"{key} {number:.3f}" for key, number in value.items())
            out.append(f"{indent}{name:<{48 - len(indent)}} {text}")
        elif isinstance(value, dict):
            out += [f"{indent}{name}", *lines(value, indent + "  ")]
        else:
            text = f"{value:.3f}" if isinstance(value, float) else f"{value}"
            out.append(f"{indent}{name:<{48 - len(indent)}} {text}")
    return out
