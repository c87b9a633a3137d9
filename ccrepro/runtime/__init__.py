"""The machine under a run: devices, ranks, files, signals, fast kernels. It takes plain values, never a `Config`."""
