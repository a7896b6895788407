"""GPU kernels in Triton, each beside the plain PyTorch that it must agree with.

Nothing is imported here, and Triton only when a kernel is about to run: on a CUDA device, or on
the CPU in Triton's interpreter where `TRITON_INTERPRET=1` asks for it.
"""
