"""Steps, samplers, averages, data and start-up beside the packages that people take for them: ``python -m benchmarks.speed``."""
