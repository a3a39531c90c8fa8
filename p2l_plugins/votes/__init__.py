"""Votes from evaluation logs: importers, cleaning rules and a report. No torch, LiteLLM or lm-eval here."""
