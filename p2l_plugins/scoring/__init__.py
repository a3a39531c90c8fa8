"""From prompts to coefficients: bundles, sessions, the scorer, the engine that batches, files and Ray."""
