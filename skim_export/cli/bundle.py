"""The command `skim-export bundle`: an exported model in, bundles for devices out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skim_export.bundle.target import target_names
from skim_export.work.place import check_directory, check_name
from skim_runtime.command import run_command
from skim_runtime.errors import UserError

__all__ = ["check_bundle_output", "describe_bundle", "main"]

KERNEL_SUFFIXES = (".o", ".cubin", ".cl", ".metal", ".wgsl")


def main(argv: Sequence[str]) -> int:
    """`skim-export bundle`; returns the exit code."""
    args = _parser().parse_args(argv)

    def command() -> None:
        from rich.console import Console

        from skim_export.bundle.build import check_target, targets_of, write_bundle
        from skim_runtime.progress_bar import ProgressBar

        targets = targets_of(args.target)
        outputs = [args.output / Path(target).stem for target in targets] if len(targets) > 1 else [args.output]
        for target, output in zip(targets, outputs, strict=True):
            check_target(target)
            check_bundle_output(output, args.force)
        for target, output in zip(targets, outputs, strict=True):
            with ProgressBar() as progress:
                manifest = write_bundle(args.model, target, output, progress=progress)
            Console().print(describe_bundle(manifest, output), soft_wrap=True, highlight=False)

    return run_command("skim-export bundle", command)


def check_bundle_output(output: Path, force: bool) -> None:
    """Raises UserError if something is there that would be overwritten, or nothing can be written there."""
    check_name("--output", output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output}: is a file; a bundle is a directory")
    check_directory("--output", output)
    if output.is_dir() and any(output.iterdir()) and not force:
        raise UserError(f"--output {output}: is not empty; use --force to replace the files of a bundle")


def describe_bundle(manifest: dict[str, Any], output: Path) -> str:
    """Say what was written."""
    sizes = {name: file["bytes"] for name, file in manifest["files"].items()}
    kernels = sum(size for name, size in sizes.items() if name.endswith(KERNEL_SUFFIXES))
    text = (
        f"wrote {output} for {manifest['target']}: {manifest['weights']['bytes'] / 1e6:.1f} MB of weights, "
        f"{kernels / 1e6:.2f} MB of kernels"
    )
    programs = manifest.get("programs", {"compiled": True})
    if not programs["compiled"]:
        text += f"\nits programs are not compiled, run make on the device: {programs['reason']}"
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="skim-export bundle",
        description="Compile an exported model for devices: kernels, weights and a program without dependencies.",
        epilog=f"targets: {', '.join(target_names())}; or cpu, gpu for all of a kind; or a .toml file of your own",
    )
    parser.add_argument("model", type=Path, help="directory that skim-export wrote")
    parser.add_argument(
        "--target", required=True, action="append", help="what to compile for (see below); may be given again"
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        type=Path,
        help="directory to write; with several targets, a directory of those",
    )
    parser.add_argument("--force", action="store_true", help="replace an output that exists")
    return parser
