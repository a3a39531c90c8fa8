"""Routing rules: pure functions of values and costs, paced budgets, one decision explained."""
