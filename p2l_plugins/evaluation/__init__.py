"""How good a P2L is, on votes and scores that it was not trained on; NumPy only."""
