"""`p2l arena`: a page where people compare two anonymous answers of a configuration's models, and vote."""
