"""What an output is: the mixings in NumPy alone, obvious and slow (FDT is the paper's Algorithm 2)."""
