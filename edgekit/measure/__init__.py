"""What is found out about a file: accuracy, parity, latency, memory and size."""
