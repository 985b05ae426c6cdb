"""What makes `model.py` fast where no library does: read `blocks` (attention on a CPU), `norm`, then `cpu` (threads,
memory and products of a process there)."""
