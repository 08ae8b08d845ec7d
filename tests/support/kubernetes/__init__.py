"""A real one-node Kubernetes for tests: built with Go, run on Debian's containerd, in Linux namespaces of its own."""
