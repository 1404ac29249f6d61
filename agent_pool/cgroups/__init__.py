"""Control groups: the kernel's limits on a worker, version 1 and 2 behind one interface."""
