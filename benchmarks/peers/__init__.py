"""Other packages' SAC on the work of :mod:`benchmarks.peers.task`, each behind one interface."""
