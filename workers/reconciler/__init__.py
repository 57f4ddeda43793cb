"""Reconciler: proves, every few seconds and for every sale, that nothing was oversold (A) and nothing lost (B)."""
