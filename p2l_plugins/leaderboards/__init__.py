"""Leaderboards of prompts: fitted, with intervals, by category and topic, of users; and their pages."""
