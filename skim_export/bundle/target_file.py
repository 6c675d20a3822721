"""A target as a readable file, like those in `targets/`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from skim_export.bundle.target import CpuTarget

__all__ = ["target_file"]


def target_file(target: CpuTarget, comment: str) -> str:
    """The TOML of a target, from which `load_cpu_target` reads the same; `comment` is its first line."""
    settings: dict[str, Any] = {
        "description": target.description,
        "kind": "cpu",
        "lookup": target.lookup,
        "float_lookup": target.float_lookup,
        "integer": target.integer,
        "compiler": target.compiler_name,
        "compiler_flags": target.compiler_flags,
        "compiler_package": target.compiler_package,
        "cpu_flags": target.cpu_flags,
        "emulator": target.emulator,
        "threads": target.threads,
    }
    given = {key: value for key, value in settings.items() if value not in (None, (), "none")}
    sections = [f"# {comment}\n{_lines(given)}", f"[target]\n{_lines(target.tvm)}"]
    sections.append(f"[schedule]\n{_lines(asdict(target.schedule))}")
    sections += [f"[[override]]\n{_lines({'when': o.when, **o.changes})}" for o in target.overrides]
    return "\n".join(sections)


def _lines(table: Mapping[str, Any]) -> str:
    return "".join(f"{key} = {_value(value)}\n" for key, value in table.items())


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {_value(v)}' for key, v in value.items())} }}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_value, value))}]"
    return json.dumps(value, ensure_ascii=False)  # strings, integers and booleans are written alike
