"""Benchmarks and gates. Figures are ratios of one run on one machine; `METHOD.md` describes the measurements."""
