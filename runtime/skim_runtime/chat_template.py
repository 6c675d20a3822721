"""Chat templates: programs in Jinja that come with a model, rendered in a process that is given little."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from skim_runtime.errors import UserError

__all__ = ["render_template"]

PROGRAM = Path(__file__).with_name("render_template.py")
SECONDS = 10.0
MEMORY = 1 << 30  # bytes


def render_template(template: str, variables: dict[str, Any], *, seconds: float = SECONDS) -> str:
    """The text of a template.

    Args:
        template: in Jinja, with what transformers adds to it.
        variables: plain data.
        seconds: that it may take.

    Raises:
        UserError: the template is wrong, refuses the variables, or takes too much time or memory.
    """
    request = json.dumps({"template": template, "variables": variables, "memory": MEMORY})
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(PROGRAM)], input=request, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"takes more than {seconds:g} seconds") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:  # the system ended it
        raise UserError(f"ended with code {done.returncode}: it may take too much memory") from None
    if "error" in answer:
        raise UserError(answer["error"])
    text: str = answer["text"]
    return text
