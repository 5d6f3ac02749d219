//! End-to-end tests with the real binaries, and benchmarks against peers.
