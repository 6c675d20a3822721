"""How the work of an export is done: in tasks, with what resources, where, and what an interruption leaves of it."""
