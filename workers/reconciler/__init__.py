"""Reconciler: proves every few seconds, for every sale, that nothing was oversold (A) and nothing was lost (B)."""
