"""Votes from live traffic: a share of the answers compared with another model's, after they went out."""
