"""Train the rows of the paper, attack them, and set the results beside what it prints."""
