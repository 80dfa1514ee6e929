"""Mutated files and what gemelo makes of them: seeds, mutations, readers, workers, a table."""
