"""Files in and out: rows, tables, prompts, figures; the one atomic writer."""
