"""The machines that kernels are compiled for: one readable file each, in `targets/`."""

from __future__ import annotations

import difflib
import functools
import platform
import shutil
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skim_export.bundle.schedule import Override, Schedule
from skim_export.packed import RowClass
from skim_runtime.errors import UserError

__all__ = ["KINDS", "CpuTarget", "load_cpu_target", "read_target", "target_names", "target_path"]

KINDS = ("cpu", "gpu")
DIRECTORY = Path(__file__).parent / "targets"
REQUIRED = {
    "description": str,
    "kind": str,
    "lookup": str,
    "integer": str,
    "compiler": str,
    "threads": int,
    "target": dict,
    "schedule": dict,
}
OPTIONAL = {
    "float_lookup": str,
    "compiler_flags": list,
    "compiler_package": str,
    "cpu_flags": list,
    "emulator": list,
    "override": list,
}


@dataclass(frozen=True)
class CpuTarget:
    """A CPU.

    Attributes:
        name: of its file.
        description: for people.
        lookup: how its instructions look up bytes, a key of `skim_export.bundle.kernels.lookup.LOOKUPS`.
        float_lookup: how they look up float32, a key of `skim_export.bundle.kernels.lookup.FLOAT_LOOKUPS`.
        integer: how they multiply integers, a key of `skim_export.bundle.kernels.arithmetic.INTEGERS`.
        compiler_name: the C compiler that makes programs for it.
        compiler_flags: that it needs.
        compiler_package: Debian's package with it.
        cpu_flags: without which a CPU can't run its programs, as /proc/cpuinfo names them.
        emulator: the command that runs its programs on another machine; empty if there is none.
        threads: as many as such a machine has cores.
        tvm: the target as TVM takes it.
        schedule: of its kernels.
        overrides: of the schedule, for some products; later ones win.
    """

    name: str
    description: str
    lookup: str
    float_lookup: str
    integer: str
    compiler_name: str
    compiler_flags: tuple[str, ...]
    compiler_package: str | None
    cpu_flags: tuple[str, ...]
    emulator: tuple[str, ...]
    threads: int
    tvm: dict[str, Any]
    schedule: Schedule
    overrides: tuple[Override, ...]

    def schedule_for(self, row_class: RowClass, integer: bool, N: int, K: int) -> Schedule:
        """The schedule of a product with the rows of a class in a matrix of N rows and K columns."""
        schedule = self.schedule
        for i, override in enumerate(self.overrides):
            if override.applies(row_class, integer, N, K):
                schedule = schedule.changed(override.changes, f"target {self.name}, override {i + 1}")
        return schedule

    def missing_here(self) -> str | None:
        """What this machine lacks to run programs for the target."""
        architecture, here = self.tvm["mtriple"].partition("-")[0], platform.machine()
        if not here.startswith(architecture.removesuffix("a")):  # armv7a is Linux's armv7l
            return f"it is for {architecture}, this machine is {here}"
        missing = [flag for flag in self.cpu_flags if flag not in _cpu_flags()]
        return f"this CPU has no {', '.join(missing)}" if missing else None

    def compiler(self) -> str | None:
        """The C compiler for it, if it is installed."""
        return shutil.which(self.compiler_name)

    def require_compiler(self) -> str:
        """The C compiler for it.

        Raises:
            UserError: it is not installed; says how to get it.
        """
        if found := self.compiler():
            return found
        hint = f": apt install {self.compiler_package}" if self.compiler_package else ""
        raise UserError(f"target {self.name} needs the C compiler {self.compiler_name}, which is not installed{hint}")


def target_names(kind: str | None = None) -> list[str]:
    """The targets that there are, of one kind ("cpu", "gpu") or of all."""
    paths = sorted(DIRECTORY.glob("*.toml"))
    return [path.stem for path in paths if kind in (None, read_target(path)["kind"])]


def load_cpu_target(name: str) -> CpuTarget:
    """A target by name, or from a file of one's own.

    Args:
        name: a name in `targets/`, or the path of a .toml file like those there.

    Raises:
        UserError: there is no such target, it is no CPU, or its file is wrong.
    """
    path = target_path(name)
    table = read_target(path)
    if table["kind"] != "cpu":
        raise UserError(f"target {name} is no CPU; these are: {', '.join(target_names('cpu'))}")
    where = path.name
    for key, value in table.items():
        expected = {**REQUIRED, **OPTIONAL}.get(key)
        if expected is None:
            raise UserError(f"{where}: unknown key {key!r}; there are {', '.join([*REQUIRED, *OPTIONAL])}")
        if not isinstance(value, expected):
            raise UserError(f"{where}: {key} = {value!r} must be a {expected.__name__}")
    if missing := [key for key in REQUIRED if key not in table]:
        raise UserError(f"{where}: {missing[0]} is missing")
    return CpuTarget(
        name=path.stem,
        description=table["description"],
        lookup=table["lookup"],
        float_lookup=table.get("float_lookup", "none"),
        integer=table["integer"],
        compiler_name=table["compiler"],
        compiler_flags=tuple(table.get("compiler_flags", ())),
        compiler_package=table.get("compiler_package"),
        cpu_flags=tuple(table.get("cpu_flags", ())),
        emulator=tuple(table.get("emulator", ())),
        threads=table["threads"],
        tvm=table["target"],
        schedule=Schedule.of(table["schedule"], f"{where} [schedule]"),
        overrides=tuple(
            Override.of(o, f"{where} [[override]] {i + 1}") for i, o in enumerate(table.get("override", ()))
        ),
    )


@functools.cache
def _cpu_flags() -> frozenset[str]:
    """What this CPU can do, as Linux says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(
        next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "").split()
    )


def target_path(name: str) -> Path:
    """The file of a target.

    Raises:
        UserError: there is none; names the nearest.
    """
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise UserError(f"--target {name}: no such file")
        return Path(name)
    names = target_names()
    if name in names:
        return DIRECTORY / f"{name}.toml"
    nearest = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(names)}"
    raise UserError(f"--target {name}: unknown target; {hint}")


def read_target(path: Path) -> dict[str, Any]:
    """A target's file, not checked but for its kind.

    Raises:
        UserError: it is no TOML file, or does not say its kind.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no TOML file: {error}") from error
    if table.get("kind") not in KINDS:
        raise UserError(f"{path.name}: kind = {table.get('kind')!r} must be one of {', '.join(KINDS)}")
    return table
