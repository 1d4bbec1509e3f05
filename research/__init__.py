"""How the bundled weights were made and measured: recipes, experiments, results, benchmarks. Not installed."""
