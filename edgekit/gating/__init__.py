"""Whether a bundle is good enough beside the one before: figures, rules, baseline, verdict."""
