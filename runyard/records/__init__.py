"""What is kept of runs: plans and results, logs and their seals, archives, caches. All through `ObjectStore`."""
