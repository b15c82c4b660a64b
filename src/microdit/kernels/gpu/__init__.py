"""A block's operations for a GPU, in Triton: kernels.py moves the numbers, operations.py has shapes and derivatives.

graphs.py launches a whole step at once, device_memory.py says how memory is taken.
"""
