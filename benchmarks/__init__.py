"""Side-by-side measurements against peers; ``python -m benchmarks.NAME`` runs one, see `benchmarks.harness` for what the figures mean."""
