"""What an output is: Full Distribution Training in NumPy alone, obvious and slow (the paper's Algorithm 2)."""
