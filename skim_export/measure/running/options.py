"""Options of commands that run kernels."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from skim_runtime.errors import UserError
from skim_runtime.measure.report import last_level_cache

if TYPE_CHECKING:
    from skim_export.bundle.target import CpuTarget
    from skim_export.measure.running.machine import Machine

__all__ = ["add_machine_arguments", "cold_bytes", "open_machine"]

COLD = 3  # times the last-level cache
BOARD_COLD_MB = 32.0  # boards have caches of a few MB


def add_machine_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Declare where kernels are timed, and with how many bytes of weights."""
    parser.add_argument("--rpc", metavar="HOST:PORT", help="TVM's RPC tracker: time on a board, not on this machine")
    parser.add_argument("--rpc-key", metavar="KEY", help="the board's key at the tracker (default: the target's name)")
    parser.add_argument(
        "--cold-mb",
        type=float,
        metavar="MB",
        help=f"weights that are read in turn, so that none is in a cache (default: {COLD} times the last-level cache, "
        f"{BOARD_COLD_MB:.0f} on a board)",
    )


def cold_bytes(args: argparse.Namespace) -> int:
    """Bytes of weights that are read in turn.

    Raises:
        UserError: --cold-mb makes no sense.
    """
    if args.cold_mb is None:
        return int(BOARD_COLD_MB * 1e6) if args.rpc else COLD * last_level_cache()
    if not args.cold_mb > 0:
        raise UserError(f"--cold-mb {args.cold_mb}: must be positive")
    return int(args.cold_mb * 1e6)


def open_machine(args: argparse.Namespace, target: CpuTarget, threads: int) -> Machine:
    """The board that the options name, or this machine.

    Raises:
        UserError: it can't be reached or used.
    """
    if args.rpc_key and not args.rpc:
        raise UserError(f"--rpc-key {args.rpc_key}: needs --rpc, the tracker")
    from skim_export.measure.running.machine import board, this_machine

    if args.rpc:
        return board(target, threads, args.rpc, args.rpc_key or target.name)
    return this_machine(target, threads)
