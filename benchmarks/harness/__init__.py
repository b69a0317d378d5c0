"""What the benchmark scripts share: rounds in turns, a process for each tool, checks that both did the same work, rows of results."""
